"""Calculators of the chapter on scaling laws: how good a model will be, and what it will cost."""

from __future__ import annotations

from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import (
    Case,
    Choice,
    Curve,
    Input,
    Line,
    Mark,
    Option,
    Output,
    Ratio,
    Slider,
    Table,
    Value,
    grouped,
    whole,
)
from efflab.calculators.picks import custom_accelerator, custom_model, pick_accelerator, pick_dtype, pick_model
from efflab.catalog import laws
from efflab.formulas import memory, scaling_laws
from efflab.units import COUNT, PARAMETER

DAY, HOUR = 86400.0, 3600.0
CHINCHILLA = (70e9, 1.4e12)  # parameters, tokens
GOPHER = 5.76e23  # FLOP

# The sizes drawn: from those that read 20,000 tokens per parameter to those that read one for 50 parameters.
_SMALLEST, _LARGEST = 2e4, 0.02


def _pick_law(default: str = "Besiroglu 2024", takes: dict[str, str] | None = None) -> Choice:
    """A choice of published fit. It sets the five constants."""
    options = [Option(law.name, sets=law.constants(), takes=takes or {}) for law in laws().values()]
    return Choice("law", options, default=default, label="Published fit", shared=True)


def _sizes_drawn(flops: str) -> list[Output]:
    """The least and the largest size that a curve shows; they follow the budget."""
    return [
        Output(
            scaling_laws.parameters_at_ratio,
            name,
            given={"flops": flops, "tokens_per_parameter": ratio},
            shown=False,
        )
        for name, ratio in (("smallest", _SMALLEST), ("largest", _LARGEST))
    ]


def _on_devices(default: int, mfu: float, sets: dict[str, str]) -> list[Input]:
    """What turns operations into time and money."""
    return grouped(
        "Hardware",
        pick_accelerator("H100 SXM", sets=sets),
        *custom_accelerator("peak_performance", *sets.values()),
        pick_dtype(sets=()),
        whole("devices", 2**20, default, "Devices"),
        Slider("mfu", 0.01, 1, default=mfu, steps=99, label="MFU", help="0.4: 40% of the peak"),
        Slider(
            "price",
            0.1 / HOUR,
            100 / HOUR,
            default=2.5 / HOUR,
            scale="log",
            per=1 / HOUR,
            label="Price",
            help="of one device",
        ),
    )


loss_surface = Calculator(
    name="loss-surface",
    topic="scaling_laws",
    title="What loss do this many parameters and tokens reach?",
    intro="Choose a model and how much it reads. One curve keeps the tokens and changes the size; the other keeps the "
    "operations, so that a larger model reads less.",
    inputs=[
        _pick_law(takes={"size": "parameters"}),
        Slider("parameters", 1e6, 1e13, default=CHINCHILLA[0], scale="log", label="Parameters"),
        Slider("tokens", 1e6, 1e15, default=CHINCHILLA[1], scale="log", label="Training tokens"),
    ],
    outputs=[
        Output(scaling_laws.parametric_loss, "loss", "Loss"),
        Value("irreducible_loss", "Irreducible"),
        Output(scaling_laws.model_term, label="Reducible by size"),
        Output(scaling_laws.data_term, label="Reducible by data"),
        Output(scaling_laws.training_flops, label="Training operations"),
        Output(scaling_laws.tokens_per_parameter),
        Output(
            scaling_laws.compute_optimal_parameters,
            "optimal_parameters",
            "Compute-optimal size",
            given={"flops": "training_flops"},
        ),
        Output(
            scaling_laws.compute_optimal_loss,
            "optimal_loss",
            "Its loss",
            given={"flops": "training_flops"},
        ),
        Output(
            scaling_laws.doubling_gain,
            "size_gain",
            given={"term": "model_term", "exponent": "parameter_exponent"},
            shown=False,
        ),
        Output(
            scaling_laws.doubling_gain,
            "data_gain",
            given={"term": "data_term", "exponent": "token_exponent"},
            shown=False,
        ),
        Ratio("excess", "loss", "optimal_loss", shown=False),
        Ratio("too_large", "parameters", "optimal_parameters", shown=False),
        Ratio("too_small", "optimal_parameters", "parameters", shown=False),
        Output(scaling_laws.parametric_loss, "loss_at_tokens", given={"parameters": "size"}, shown=False),
        Output(
            scaling_laws.tokens_in_budget,
            "tokens_at_compute",
            given={"flops": "training_flops", "parameters": "size"},
            shown=False,
        ),
        Output(
            scaling_laws.parametric_loss,
            "loss_at_compute",
            given={"parameters": "size", "tokens": "tokens_at_compute"},
            shown=False,
        ),
        *_sizes_drawn("training_flops"),
    ],
    curve=Curve(
        x="size",
        low="smallest",
        high="largest",
        scale="log-linear",
        from_zero=False,
        lines=[Line("loss_at_compute", "{training_flops}"), Line("loss_at_tokens", "{tokens}")],
        marks=[Mark("optimal_parameters", "least at {optimal_parameters}", y="optimal_loss", dot=True)],
        at=[("parameters", "loss")],
        at_label="this model",
        x_label="Parameters",
        y_label="Loss",
        describe="Loss against parameters, on a logarithmic axis. At {training_flops} the loss has a minimum of "
        "{optimal_loss} at {optimal_parameters}; on {tokens} it only falls. "
        "This model of {parameters}: {loss}.",
    ),
    verdict=[
        Case(
            "Balanced: within 0.1% of the least loss at these operations. Twice the parameters would take {size_gain} "
            "off the loss, twice the tokens {data_gain}.",
            [("excess", "<", 1.001)],
        ),
        Case(
            "More parameters buy more: the model is {too_small} times smaller than best for its operations. Twice the "
            "parameters would take {size_gain} off the loss, twice the tokens {data_gain}, for the same extra "
            "operations.",
            [("size_gain", ">", "data_gain")],
        ),
        Case(
            "More tokens buy more: the model is {too_large} times larger than best for its operations. Twice the "
            "tokens would take {data_gain} off the loss, twice the parameters {size_gain}, for the same extra "
            "operations.",
        ),
    ],
    note="Losses are nats per token on MassiveText with its tokenizer, and hold for one pass over the data; another "
    "data set has other constants. Operations are 6ND.",
)


def _at_law(name: str) -> dict[str, str | float]:
    """What a formula of a parametric law is given to be that published fit, whichever is chosen."""
    return dict(laws()[name].constants())


_BUDGET = [
    Choice(
        "budget",
        [
            Option("flop", "Operations", takes={"flops": "budget_flops"}),
            Option("gpu_hours", "GPU-hours", formulas={"flops": scaling_laws.flops_in_device_time}),
            Option("money", "Money", formulas={"flops": scaling_laws.flops_in_cost}),
        ],
        default="flop",
        label="Given in",
        group="Budget",
    ),
    Slider("budget_flops", 1e12, 1e29, default=GOPHER, scale="log", label="Amount", group="Budget"),
    Slider("device_time", HOUR, 1e10 * HOUR, default=1e6 * HOUR, scale="log", per=HOUR, label="Amount", group="Budget"),
    Slider("cost", 1, 1e11, default=2e6, scale="log", label="Amount", group="Budget"),
]
# The fit whose printed constants are rounded, and the same with all its digits.
_ROUNDED, _UNROUNDED = "Hoffmann 2022, rounded", "Hoffmann 2022, unrounded"
_IS_ROUNDED = ("parameter_exponent", "==", laws()[_ROUNDED].parameter_exponent)
_OPTIMUM = (
    "{optimal_parameters} on {optimal_tokens}, {optimal_ratio} per parameter, reach {optimal_loss} in {time} on "
    "{devices} devices."
)
_TRAP = (
    " But these constants are rounded to two digits: the same fit with all its digits gives {unrounded_parameters} on "
    "{unrounded_tokens}."
)
_SMALLER = (
    " A model {smaller} times smaller does {smaller} times fewer operations for each token that it serves, and needs "
    "{extra_compute} times the training operations to reach that loss."
)
_SAME = " Optimal for training: whoever serves the model much may want it smaller, and trained longer."
_TOO_SMALL = " A model {smaller} times smaller cannot reach that loss: on endless data it nears {smaller_limit}."

compute_optimal = Calculator(
    name="compute-optimal",
    topic="scaling_laws",
    title="What model is best for this budget?",
    intro="Give a budget. The curve is the loss of every size that it can train: too small a model cannot use the "
    "data, too large a model reads too little of it.",
    inputs=[
        *_BUDGET,
        *grouped(
            "Model",
            _pick_law(),
            Slider(
                "smaller",
                1,
                100,
                default=4,
                scale="log",
                label="Times smaller",
                help="than optimal, to serve it",
                unit=COUNT,
            ),
        ),
        *_on_devices(1024, 0.4, sets={}),
    ],
    outputs=[
        Value("flops", "Operations"),
        Output(scaling_laws.compute_optimal_parameters, "optimal_parameters", "Parameters"),
        Output(scaling_laws.compute_optimal_tokens, "optimal_tokens", "Tokens"),
        Output(
            scaling_laws.tokens_per_parameter,
            "optimal_ratio",
            "Tokens per parameter",
            given={"parameters": "optimal_parameters", "tokens": "optimal_tokens"},
        ),
        Output(scaling_laws.compute_optimal_loss, "optimal_loss", "Loss"),
        Output(scaling_laws.training_time, "time", "Time on these devices"),
        Output(scaling_laws.device_time, "run_device_time", "GPU-hours"),
        Output(scaling_laws.training_cost, "run_cost", "Cost", given={"device_time": "run_device_time"}),
        Ratio("smaller_parameters", "optimal_parameters", "smaller", label="Smaller model", unit=PARAMETER),
        Output(
            scaling_laws.tokens_in_budget,
            "smaller_tokens",
            "Its tokens, same budget",
            given={"parameters": "smaller_parameters"},
        ),
        Output(
            scaling_laws.parametric_loss,
            "smaller_loss",
            "Its loss, same budget",
            given={"parameters": "smaller_parameters", "tokens": "smaller_tokens"},
        ),
        Output(scaling_laws.limiting_loss, "smaller_limit", given={"parameters": "smaller_parameters"}, shown=False),
        Output(
            scaling_laws.tokens_for_loss,
            "tokens_to_catch_up",
            given={"parameters": "smaller_parameters", "loss": "optimal_loss"},
            shown=False,
        ),
        Output(
            scaling_laws.training_flops,
            "flops_to_catch_up",
            given={"parameters": "smaller_parameters", "tokens": "tokens_to_catch_up"},
            shown=False,
        ),
        Ratio("extra_compute", "flops_to_catch_up", "flops", shown=False),
        *(
            Output(
                formula,
                name,
                given={p: v for p, v in _at_law(_UNROUNDED).items() if p != "irreducible_loss"},
                shown=False,
            )
            for formula, name in (
                (scaling_laws.compute_optimal_parameters, "unrounded_parameters"),
                (scaling_laws.compute_optimal_tokens, "unrounded_tokens"),
            )
        ),
        *_sizes_drawn("flops"),
    ],
    curve=Curve(
        x="smaller_parameters",
        low="smallest",
        high="largest",
        scale="log-linear",
        from_zero=False,
        lines=[Line("smaller_loss", "{law}")],
        vary="law",
        marks=[Mark("optimal_parameters", "best: {optimal_parameters}", y="optimal_loss", dot=True)],
        at=[("smaller_parameters", "smaller_loss")],
        at_label="the smaller model",
        x_label="Parameters",
        y_label="Loss",
        describe="Loss against parameters, on a logarithmic axis, at {flops}. It is least, {optimal_loss}, at "
        "{optimal_parameters}. The smaller model: {smaller_parameters}, {smaller_loss}.",
    ),
    compare=Table(
        "law",
        ["optimal_parameters", "optimal_tokens", "optimal_ratio", "optimal_loss"],
        label="The same budget by each published fit",
    ),
    verdict=[
        Case(_OPTIMUM + (_TRAP if rounded else "") + text, ([_IS_ROUNDED] if rounded else []) + when)
        for rounded in (True, False)
        for text, when in (
            (_SAME, [("smaller", "==", 1)]),
            (_SMALLER, [("smaller_limit", "<", "optimal_loss")]),
            (_TOO_SMALL, []),
        )
    ],
    note="Operations are 6ND. Losses are nats per token on MassiveText. Time and cost suppose that the MFU holds for "
    "the whole run and on all devices; the price is yours to set, and failed runs are not in it.",
)


training_time = Calculator(
    name="training-time",
    topic="scaling_laws",
    title="How long does this training run take, and what does it cost?",
    inputs=[
        pick_model(
            "Llama 3.1 405B",
            sets={"parameters": "parameters", "published_tokens": "tokens"},
            own={"parameters": "own_parameters", "tokens": "own_tokens"},
        ),
        *custom_model("parameters"),
        Choice(
            "data",
            [
                Option("published", "As published", takes={"tokens": "published_tokens"}),
                Option("own", "Your own number", takes={"tokens": "own_tokens"}),
            ],
            default="published",
            label="Tokens",
        ),
        *custom_model("tokens"),
        *_on_devices(16384, 0.404, sets={"capacity": "memory"}),
        Slider("deadline", DAY, 730 * DAY, default=90 * DAY, scale="log", per=DAY, label="Deadline", group="Hardware"),
    ],
    outputs=[
        Output(scaling_laws.training_time, "time", "Time"),
        Output(scaling_laws.device_time, "run_device_time", "GPU-hours"),
        Output(scaling_laws.training_cost, "cost", "Cost", given={"device_time": "run_device_time"}),
        Output(scaling_laws.training_flops, "flops", "Operations"),
        Output(scaling_laws.tokens_per_parameter),
        Output(
            scaling_laws.devices_for_time,
            "devices_needed",
            "Devices for the deadline",
            given={"device_time": "run_device_time", "time": "deadline"},
            whole=True,
        ),
        Output(memory.weight_bytes, "state_bytes", given={"bytes_per_parameter": 16}, shown=False),
        Ratio("devices_to_hold", "state_bytes", "capacity", shown=False, whole=True),
    ],
    curve=Curve(
        x="devices",
        lines=[Line("time", "time"), Line("deadline", "deadline", faint=True)],
        marks=[Mark("devices_needed", "needs {devices_needed}", y="deadline")],
        at=[("devices", "time")],
        at_label="this run",
        x_label="Devices",
        y_label="Time",
        describe="Time of the run against the number of devices, both axes logarithmic, at an MFU of {mfu}: twice the "
        "devices, half the time. {devices} devices: {time}. The deadline of {deadline} needs {devices_needed}.",
    ),
    verdict=[
        Case(
            "Not on {devices} of these: weights, gradients and optimizer take {state_bytes} at 16 bytes per parameter, "
            "which needs at least {devices_to_hold} of them. If they fitted, it would take {time}.",
            [("devices_to_hold", ">", "devices")],
        ),
        Case(
            "In time: {time} for {flops}. One device would do.",
            [("devices_needed", "<=", 1)],
        ),
        Case(
            "In time: {time} and {cost}. For {deadline} at this MFU {devices_needed} devices are enough.",
            [("devices_needed", "<=", "devices")],
        ),
        Case(
            "Too late: {time} and {cost}. For {deadline} at this MFU it takes {devices_needed} devices. More "
            "devices cost the same as long as the MFU holds; usually it falls."
        ),
    ],
    note="Operations are 6ND. Enter the MFU of the whole run, restarts included. Published ones, 20% to 55% on "
    "thousands of devices, are mostly of a job while it runs: Llama 3's 40% is about 34% by the GPU-hours on its card. "
    "The price is yours to set; data, storage, staff and failed runs are not in it.",
)
