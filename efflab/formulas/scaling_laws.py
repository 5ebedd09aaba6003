"""How good a model will be and what it will cost: scaling laws, training compute, time and money.

N counts parameters, D counts training tokens, C counts operations of one training run. A multiply and an add
are two FLOP. Losses are cross-entropies in nats per token. Every formula raises `FormulaError` for an argument
that is not a finite number in its unit's range.
"""

from __future__ import annotations

from typing import Annotated

from efflab.formulas.namespace import as_count, as_flop, exp, formula, maximum, sqrt
from efflab.units import (
    Count,
    DeviceSecond,
    Dollar,
    DollarPerSecond,
    Flop,
    FlopPerSecond,
    Nat,
    Number,
    Parameters,
    Range,
    Second,
    TokenPerSecond,
    Tokens,
)

# Published exponents lie between 0.05 (Kaplan's loss against compute) and 0.76. Far outside, powers overflow.
EXPONENT = Range(0.05, 3)
Exponent = Annotated[Count, EXPONENT]
Utilization = Annotated[Count, Range(0, 1)]
Factor = Annotated[Count, Range(1, 1e6)]

PETAFLOP_DAY = 8.64e19
LEAST_GAP = 1e-6  # nats; nearer to a size's limit than this, tokens_for_loss stays finite instead of infinite


# Operations


@formula
def training_flops(*, parameters: Parameters, tokens: Tokens) -> Flop:
    r"""Operations of one training run of a decoder: two per parameter and token forward, four backward.

    Equation: C = 6 N D
    Where: N = parameters; D = tokens
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1
    Assumes: every parameter multiplies every token once; attention scores and a lookup of embeddings are left out; N
        counts active parameters for a mixture of experts.
    """
    return as_flop(6 * parameters * tokens)


@formula
def encoder_decoder_training_flops(*, parameters: Parameters, tokens: Tokens) -> Flop:
    r"""Operations of one training run of an encoder-decoder, where a token meets half of the parameters.

    Equation: C = 3 N D
    Where: N = parameters; D = tokens
    Source: Brown et al. 2020, arXiv:2005.14165, Table D.1
    Assumes: encoder and decoder are of one size, and each token passes through one of them.
    """
    return as_flop(3 * parameters * tokens)


@formula
def inference_flops(*, parameters: Parameters, tokens: Tokens) -> Flop:
    r"""Operations of inference: a forward pass only, two per parameter and token.

    Equation: C_\mathrm{inf} = 2 N D_\mathrm{inf}
    Where: N = parameters; D_\mathrm{inf} = tokens
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1
    Assumes: attention scores are left out; prompt tokens and generated tokens count alike.
    """
    return as_flop(2 * parameters * tokens)


@formula
def lifetime_flops(*, parameters: Parameters, training_tokens: Tokens, inference_tokens: Tokens) -> Flop:
    r"""Operations of a model's training and of all its use.

    Equation: C_\mathrm{life} = 6 N D + 2 N D_\mathrm{inf}
    Where: N = parameters; D = training_tokens; D_\mathrm{inf} = inference_tokens
    Source: Sardana et al. 2024, arXiv:2401.00448, section 2
    Assumes: an operation costs the same in training and in inference; decoding is often dearer.
    """
    return as_flop(6 * parameters * training_tokens + 2 * parameters * inference_tokens)


@formula
def petaflop_days(*, flops: Flop) -> Number:
    r"""Operations in petaFLOP/s-days, the unit of Kaplan and of GPT-3's report.

    Equation: \frac{C}{10^{15} \cdot 86400}
    Where: C = flops
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 1.3
    Assumes: a day of 24 hours at 10^15 FLOP/s.
    """
    return as_count(flops) / PETAFLOP_DAY


# Tokens and parameters in a budget


@formula
def tokens_per_parameter(*, parameters: Parameters, tokens: Tokens) -> Number:
    r"""Training tokens for each parameter.

    Equation: r = \frac{D}{N}
    Where: N = parameters; D = tokens
    Source: Definition
    Assumes: total parameters, as Hoffmann et al. count them; without embeddings the ratio is larger.
    """
    return tokens / parameters


@formula
def tokens_in_budget(*, flops: Flop, parameters: Parameters) -> Tokens:
    r"""Tokens that a compute budget trains a model of this size on.

    Equation: D = \frac{C}{6 N}
    Where: C = flops; N = parameters
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1
    Assumes: C = 6ND.
    """
    return as_count(flops) / (6 * parameters)


@formula
def parameters_in_budget(*, flops: Flop, tokens: Tokens) -> Parameters:
    r"""Parameters of the model that a compute budget trains on these tokens.

    Equation: N = \frac{C}{6 D}
    Where: C = flops; D = tokens
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1
    Assumes: C = 6ND.
    """
    return as_count(flops) / (6 * tokens)


@formula
def parameters_at_ratio(*, flops: Flop, tokens_per_parameter: Count) -> Parameters:
    r"""Parameters that use up a compute budget at a chosen number of tokens per parameter.

    Equation: N = \sqrt{\frac{C}{6 r}}
    Where: C = flops; r = tokens_per_parameter
    Source: Definition, from C = 6ND and D = rN
    Assumes: one ratio holds at every budget, as the rule of 20 tokens per parameter says.
    """
    return sqrt(as_count(flops) / (6 * tokens_per_parameter))


# The parametric law


@formula
def parametric_loss(
    *,
    parameters: Parameters,
    tokens: Tokens,
    irreducible_loss: Nat,
    parameter_coefficient: Count,
    parameter_exponent: Exponent,
    token_coefficient: Count,
    token_exponent: Exponent,
) -> Nat:
    r"""Loss of a model by its size and its training tokens.

    Equation: L = E + \frac{A}{N^{\alpha}} + \frac{B}{D^{\beta}}
    Where: N = parameters; D = tokens; E = irreducible_loss; A = parameter_coefficient; \alpha = parameter_exponent; B
        = token_coefficient; \beta = token_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 2
    Assumes: one pass over the data, a learning-rate schedule that ends with the run, and the data set and tokenizer
        of the fit.
    """
    return (
        irreducible_loss
        + parameter_coefficient * parameters ** (-parameter_exponent)
        + token_coefficient * tokens ** (-token_exponent)
    )


@formula
def model_term(*, parameters: Parameters, parameter_coefficient: Count, parameter_exponent: Exponent) -> Nat:
    r"""The part of the loss that a larger model would remove.

    Equation: \frac{A}{N^{\alpha}}
    Where: N = parameters; A = parameter_coefficient; \alpha = parameter_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 2
    Assumes: as parametric_loss.
    """
    return parameter_coefficient * parameters ** (-parameter_exponent)


@formula
def data_term(*, tokens: Tokens, token_coefficient: Count, token_exponent: Exponent) -> Nat:
    r"""The part of the loss that more training tokens would remove.

    Equation: \frac{B}{D^{\beta}}
    Where: D = tokens; B = token_coefficient; \beta = token_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 2
    Assumes: as parametric_loss.
    """
    return token_coefficient * tokens ** (-token_exponent)


@formula
def limiting_loss(
    *, parameters: Parameters, irreducible_loss: Nat, parameter_coefficient: Count, parameter_exponent: Exponent
) -> Nat:
    r"""The loss that a model of this size nears on ever more tokens and never reaches.

    Equation: L_\infty = E + \frac{A}{N^{\alpha}}
    Where: N = parameters; E = irreducible_loss; A = parameter_coefficient; \alpha = parameter_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 2
    Assumes: as parametric_loss.
    """
    return irreducible_loss + parameter_coefficient * parameters ** (-parameter_exponent)


@formula
def compute_optimal_exponent(*, parameter_exponent: Exponent, token_exponent: Exponent) -> Number:
    r"""Exponent with which the compute-optimal model grows with compute: N proportional to C to this power.

    Equation: a = \frac{\beta}{\alpha + \beta}
    Where: \alpha = parameter_exponent; \beta = token_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 4
    Assumes: C = 6ND; tokens then grow with the power 1 − a.
    """
    return token_exponent / (parameter_exponent + token_exponent)


def _balance(a: float, alpha: float, b: float, beta: float) -> float:
    """Hoffmann's G: where the marginal loss per unit of compute is the same for size and for data."""
    return (alpha * a / (beta * b)) ** (1 / (alpha + beta))


@formula
def compute_optimal_parameters(
    *,
    flops: Flop,
    parameter_coefficient: Count,
    parameter_exponent: Exponent,
    token_coefficient: Count,
    token_exponent: Exponent,
) -> Parameters:
    r"""Size of the model with the least loss at a compute budget.

    Equation: N^{*} = G \left(\frac{C}{6}\right)^{\frac{\beta}{\alpha + \beta}}, \quad G = \left(\frac{\alpha A}{\beta
        B}\right)^{\frac{1}{\alpha + \beta}}
    Where: C = flops; A = parameter_coefficient; \alpha = parameter_exponent; B = token_coefficient; \beta =
        token_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 4
    Assumes: C = 6ND; constants rounded to two digits move the optimum by tens of percent.
    """
    balance = _balance(parameter_coefficient, parameter_exponent, token_coefficient, token_exponent)
    return balance * (as_count(flops) / 6) ** (token_exponent / (parameter_exponent + token_exponent))


@formula
def compute_optimal_tokens(
    *,
    flops: Flop,
    parameter_coefficient: Count,
    parameter_exponent: Exponent,
    token_coefficient: Count,
    token_exponent: Exponent,
) -> Tokens:
    r"""Training tokens of the model with the least loss at a compute budget.

    Equation: D^{*} = G^{-1} \left(\frac{C}{6}\right)^{\frac{\alpha}{\alpha + \beta}}, \quad G = \left(\frac{\alpha
        A}{\beta B}\right)^{\frac{1}{\alpha + \beta}}
    Where: C = flops; A = parameter_coefficient; \alpha = parameter_exponent; B = token_coefficient; \beta =
        token_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 4
    Assumes: C = 6ND; that many different tokens exist.
    """
    balance = _balance(parameter_coefficient, parameter_exponent, token_coefficient, token_exponent)
    return (as_count(flops) / 6) ** (parameter_exponent / (parameter_exponent + token_exponent)) / balance


@formula
def compute_optimal_loss(
    *,
    flops: Flop,
    irreducible_loss: Nat,
    parameter_coefficient: Count,
    parameter_exponent: Exponent,
    token_coefficient: Count,
    token_exponent: Exponent,
) -> Nat:
    r"""The least loss that a compute budget can reach.

    Equation: L^{*} = E + \left(A G^{-\alpha} + B G^{\beta}\right)
        \left(\frac{C}{6}\right)^{-\frac{\alpha\beta}{\alpha + \beta}}, \quad G = \left(\frac{\alpha A}{\beta
        B}\right)^{\frac{1}{\alpha + \beta}}
    Where: C = flops; E = irreducible_loss; A = parameter_coefficient; \alpha = parameter_exponent; B =
        token_coefficient; \beta = token_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equations 2 and 4
    Assumes: size and tokens are the compute-optimal ones.
    """
    balance = _balance(parameter_coefficient, parameter_exponent, token_coefficient, token_exponent)
    total = parameter_exponent + token_exponent
    scale = parameter_coefficient * balance ** (-parameter_exponent) + token_coefficient * balance**token_exponent
    return irreducible_loss + scale * (as_count(flops) / 6) ** (-parameter_exponent * token_exponent / total)


@formula
def tokens_for_loss(
    *,
    parameters: Parameters,
    loss: Nat,
    irreducible_loss: Nat,
    parameter_coefficient: Count,
    parameter_exponent: Exponent,
    token_coefficient: Count,
    token_exponent: Exponent,
) -> Tokens:
    r"""Tokens on which a model of this size reaches a loss.

    Equation: D = \left(\frac{B}{L - E - A / N^{\alpha}}\right)^{1/\beta}
    Where: N = parameters; L = loss; E = irreducible_loss; A = parameter_coefficient; \alpha = parameter_exponent; B =
        token_coefficient; \beta = token_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 2, solved for D
    Assumes: the law holds far from the compute-optimal ratio; the loss is above limiting_loss, else the result is the
        huge number of tokens that brings the model within 10^-6 nats of that limit.
    """
    gap = loss - irreducible_loss - parameter_coefficient * parameters ** (-parameter_exponent)
    return (token_coefficient / maximum(gap, LEAST_GAP)) ** (1 / token_exponent)


@formula
def lifetime_flops_for_loss(
    *,
    parameters: Parameters,
    inference_tokens: Tokens,
    loss: Nat,
    irreducible_loss: Nat,
    parameter_coefficient: Count,
    parameter_exponent: Exponent,
    token_coefficient: Count,
    token_exponent: Exponent,
) -> Flop:
    r"""Operations to train a model of this size to a loss and to serve it; its minimum is the size to choose.

    Equation: C_\mathrm{life} = 6 N D + 2 N D_\mathrm{inf}, \quad D = \left(\frac{B}{L - E - A /
        N^{\alpha}}\right)^{1/\beta}
    Where: N = parameters; D_\mathrm{inf} = inference_tokens; L = loss; E = irreducible_loss; A =
        parameter_coefficient; \alpha = parameter_exponent; B = token_coefficient; \beta = token_exponent
    Source: Sardana et al. 2024, arXiv:2401.00448, section 2
    Assumes: as lifetime_flops and tokens_for_loss; the result is huge where the model is too small for the loss.
    """
    gap = loss - irreducible_loss - parameter_coefficient * parameters ** (-parameter_exponent)
    tokens = (token_coefficient / maximum(gap, LEAST_GAP)) ** (1 / token_exponent)
    return as_flop(6 * parameters * tokens + 2 * parameters * inference_tokens)


# Diminishing returns


@formula
def loss_reduction(
    *,
    parameters: Parameters,
    tokens: Tokens,
    parameter_factor: Factor,
    token_factor: Factor,
    parameter_coefficient: Count,
    parameter_exponent: Exponent,
    token_coefficient: Count,
    token_exponent: Exponent,
) -> Nat:
    r"""How much a parametric law's loss falls when size and data are multiplied by factors.

    Equation: \Delta L = \frac{A}{N^{\alpha}} \left(1 - k_N^{-\alpha}\right) + \frac{B}{D^{\beta}} \left(1 -
        k_D^{-\beta}\right)
    Where: N = parameters; D = tokens; k_N = parameter_factor; k_D = token_factor; A = parameter_coefficient; \alpha =
        parameter_exponent; B = token_coefficient; \beta = token_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 2
    Assumes: compute grows by the product of both factors.
    """
    by_size = parameter_coefficient * parameters ** (-parameter_exponent) * (1 - parameter_factor**-parameter_exponent)
    by_data = token_coefficient * tokens ** (-token_exponent) * (1 - token_factor ** (-token_exponent))
    return by_size + by_data


@formula
def doubling_gain(*, term: Nat, exponent: Exponent) -> Nat:
    r"""What doubling a scale takes off its term of the loss.

    Equation: \Delta = x \left(1 - 2^{-\alpha}\right)
    Where: x = term; \alpha = exponent
    Source: Definition
    Assumes: the term is a power law of that scale, such as model_term of size and data_term of tokens.
    """
    return term * (1 - 2 ** (-exponent))


@formula
def compute_exponent(*, parameter_exponent: Exponent, token_exponent: Exponent) -> Number:
    r"""Exponent with which the reducible loss falls with compute that is spent optimally.

    Equation: \gamma = \frac{\alpha\beta}{\alpha + \beta}
    Where: \alpha = parameter_exponent; \beta = token_exponent
    Source: Hoffmann et al. 2022, arXiv:2203.15556, equations 2 and 4
    Assumes: L − E is proportional to C^-γ; the irreducible loss E does not fall.
    """
    return parameter_exponent * token_exponent / (parameter_exponent + token_exponent)


@formula
def loss_ratio(*, factor: Factor, exponent: Exponent) -> Number:
    r"""What remains of a power law's loss when its scale (size, data or compute) is multiplied by a factor.

    Equation: \frac{L(kX)}{L(X)} = k^{-\alpha}
    Where: k = factor; \alpha = exponent
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 1.2
    Assumes: nothing but X limits the loss; of a law with an irreducible loss this is the reducible part.
    """
    return factor ** (-exponent)


@formula
def factor_for_loss_ratio(*, loss_ratio: Annotated[Count, Range(0.01, 1)], exponent: Exponent) -> Number:
    r"""Factor by which size, data or compute must grow for a power law's loss to fall to a fraction.

    Equation: k = \rho^{-1/\alpha}
    Where: \rho = loss_ratio; \alpha = exponent
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 1.2, solved for the factor
    Assumes: nothing but X limits the loss; of a law with an irreducible loss this is the reducible part.
    """
    return loss_ratio ** (-1 / exponent)


# Other published laws


@formula
def power_law_loss(*, scale: Count, critical_scale: Count, exponent: Exponent) -> Nat:
    r"""Loss when one of size, data and compute limits it and the others do not.

    Equation: L = \left(\frac{X_c}{X}\right)^{\alpha}
    Where: X = scale; X_c = critical_scale; \alpha = exponent
    Source: Kaplan et al. 2020, arXiv:2001.08361, equations 1.1 to 1.3
    Assumes: scale and critical scale are in one unit (parameters without embeddings, tokens, or petaFLOP/s-days).
    """
    return (critical_scale / scale) ** exponent


@formula
def kaplan_loss(
    *,
    parameters: Parameters,
    tokens: Tokens,
    critical_parameters: Parameters,
    parameter_exponent: Exponent,
    critical_tokens: Tokens,
    token_exponent: Exponent,
) -> Nat:
    r"""Loss of a model trained to its early stop on a limited number of tokens, as Kaplan et al. fitted it.

    Equation: L = \left[\left(\frac{N_c}{N}\right)^{\frac{\alpha_N}{\alpha_D}} + \frac{D_c}{D}\right]^{\alpha_D}
    Where: N = parameters; D = tokens; N_c = critical_parameters; \alpha_N = parameter_exponent; D_c =
        critical_tokens; \alpha_D = token_exponent
    Source: Kaplan et al. 2020, arXiv:2001.08361, equation 1.5
    Assumes: parameters without embeddings; no irreducible loss, so the law fails for very large N and D.
    """
    by_size = (critical_parameters / parameters) ** (parameter_exponent / token_exponent)
    return (by_size + critical_tokens / tokens) ** token_exponent


@formula
def power_law_optimum(
    *,
    flops: Flop,
    reference_flops: Annotated[Flop, Range(1e-3, 1e30)],
    reference_optimum: Count,
    exponent: Annotated[Number, Range(0, 2)],
) -> Number:
    r"""Compute-optimal size or tokens, by a power law through a known optimum.

    Equation: X^{*} = X_0 \left(\frac{C}{C_0}\right)^{a}
    Where: C = flops; C_0 = reference_flops; X_0 = reference_optimum; a = exponent
    Source: Kaplan et al. 2020, arXiv:2001.08361, Table 6; Hoffmann et al. 2022, arXiv:2203.15556, Table 2
    Assumes: the exponent holds from the fitted runs to this budget; an error in it grows with the distance.
    """
    return reference_optimum * (flops / reference_flops) ** exponent


@formula
def perplexity(*, loss: Annotated[Nat, Range(0, 100)]) -> Number:
    r"""Perplexity of a cross-entropy: the number of equally likely tokens that would be as hard to guess.

    Equation: P = e^{L}
    Where: L = loss
    Source: Definition
    Assumes: loss in nats per token; comparable only for one tokenizer.
    """
    return exp(loss)


# Time and money


@formula
def device_time(*, flops: Flop, peak_performance: FlopPerSecond, mfu: Utilization) -> DeviceSecond:
    r"""Time of all devices together that a number of operations takes: GPU-hours.

    Equation: T_\mathrm{dev} = \frac{C}{\pi \cdot \mathrm{MFU}}
    Where: C = flops; \pi = peak_performance; \mathrm{MFU} = mfu
    Source: Definition
    Assumes: a dense peak for the dtype of training; an MFU of the whole run, with its restarts.
    """
    return flops / (peak_performance * mfu)


@formula
def training_time(*, flops: Flop, devices: Count, peak_performance: FlopPerSecond, mfu: Utilization) -> Second:
    r"""How long a training run takes.

    Equation: T = \frac{C}{n \cdot \pi \cdot \mathrm{MFU}}
    Where: C = flops; n = devices; \pi = peak_performance; \mathrm{MFU} = mfu
    Source: Definition
    Assumes: a dense peak for the dtype of training; the MFU is that of this number of devices.
    """
    return flops / (devices * peak_performance * mfu)


@formula
def training_time_at_throughput(*, tokens: Tokens, tokens_per_second: TokenPerSecond, devices: Count) -> Second:
    r"""How long a training run takes at a measured throughput of each device.

    Equation: T = \frac{D}{n r}
    Where: D = tokens; r = tokens_per_second; n = devices
    Source: Definition
    Assumes: the throughput was measured with this number of devices and holds for the whole run.
    """
    return tokens / (tokens_per_second * devices)


@formula
def devices_for_time(*, device_time: DeviceSecond, time: Annotated[Second, Range(1e-3, 1e12)]) -> Number:
    r"""Devices that finish a training run in a given time.

    Equation: n = \frac{T_\mathrm{dev}}{T}
    Where: T_\mathrm{dev} = device_time; T = time
    Source: Definition
    Assumes: the MFU behind the device time is that of this number of devices; round up.
    """
    return device_time / time


@formula
def training_cost(*, device_time: DeviceSecond, price: DollarPerSecond) -> Dollar:
    r"""Money that a number of GPU-hours costs.

    Equation: K = T_\mathrm{dev} \cdot p
    Where: T_\mathrm{dev} = device_time; p = price
    Source: Definition
    Assumes: the price of one device; failed and exploratory runs are not in it.
    """
    return device_time * price


@formula
def flops_in_device_time(*, device_time: DeviceSecond, peak_performance: FlopPerSecond, mfu: Utilization) -> Flop:
    r"""Operations that a number of GPU-hours does for the model.

    Equation: C = T_\mathrm{dev} \cdot \pi \cdot \mathrm{MFU}
    Where: T_\mathrm{dev} = device_time; \pi = peak_performance; \mathrm{MFU} = mfu
    Source: Definition
    Assumes: a dense peak for the dtype of training; an MFU of the whole run, with its restarts.
    """
    return device_time * peak_performance * mfu


@formula
def flops_in_cost(
    *,
    cost: Dollar,
    price: Annotated[DollarPerSecond, Range(1e-9, 1e9)],
    peak_performance: FlopPerSecond,
    mfu: Utilization,
) -> Flop:
    r"""Operations that an amount of money does for the model.

    Equation: C = \frac{K}{p} \cdot \pi \cdot \mathrm{MFU}
    Where: K = cost; p = price; \pi = peak_performance; \mathrm{MFU} = mfu
    Source: Definition
    Assumes: the price of one device; a dense peak for the dtype of training; an MFU of the whole run.
    """
    return cost / price * peak_performance * mfu
