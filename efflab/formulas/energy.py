"""Energy, and what follows from it: carbon, water, money; work per joule; where energy is lost and how it is measured.

Energy is in J everywhere and is read in Wh where a data centre pays for it. Carbon is the mass of CO2 that warms as
much over 100 years as all greenhouse gases that were given off (CO2e). Every formula raises `FormulaError` for an
argument that is not a finite number in its unit's range.
"""

from __future__ import annotations

from typing import Annotated

from efflab.formulas.namespace import formula, maximum
from efflab.units import (
    Byte,
    Count,
    DeviceSecond,
    Dollar,
    DollarPerJoule,
    Flop,
    FlopPerJoule,
    FlopPerSecond,
    Gram,
    GramPerJoule,
    Joule,
    JoulePerByte,
    JoulePerFlop,
    JoulePerToken,
    Litre,
    LitrePerJoule,
    Number,
    Range,
    Second,
    TokenPerJoule,
    TokenPerSecond,
    Tokens,
    Watt,
    WattHour,
)

Pue = Annotated[Count, Range(1, 10)]
Share = Annotated[Number, Range(0, 1)]
Spent = Annotated[WattHour, Range(1e-12, 1e24)]  # an energy that something is divided by
Joules = Annotated[Joule, Range(1e-12, 1e24)]
Time = Annotated[Second, Range(1e-9, 1e12)]
Lifetime = Annotated[Second, Range(1, 1e12)]


# Power and energy


@formula
def node_power(*, processor_power: Watt, memory_power: Watt, device_power: Watt, devices: Count) -> Watt:
    r"""Mean power of a node: its processors, its memory and its accelerators.

    Equation: P = P_c + P_r + n P_d
    Where: P_c = processor_power; P_r = memory_power; P_d = device_power; n = devices
    Source: Strubell, Ganesh & McCallum 2019, arXiv:1906.02243, section 2
    Assumes: means over the run, each measured; fans, disks, network and power supplies are not in it.
    """
    return processor_power + memory_power + devices * device_power


@formula
def device_hours(*, devices: Count, duration: Second) -> DeviceSecond:
    r"""Time of all devices together.

    Equation: T_\mathrm{dev} = n t
    Where: n = devices; t = duration
    Source: Definition
    Assumes: every device is held for the whole time, busy or not.
    """
    return devices * duration


@formula
def device_energy(*, device_power: Watt, device_time: DeviceSecond) -> WattHour:
    r"""Energy of the devices themselves.

    Equation: E = P \, T_\mathrm{dev}
    Where: P = device_power; T_\mathrm{dev} = device_time
    Source: Definition
    Assumes: the mean power of one device over the whole time. The TDP is a limit, not a mean.
    """
    return device_power * device_time


@formula
def energy_from_rating(*, rated_power: Watt, load: Share, device_time: DeviceSecond) -> WattHour:
    r"""Energy when nothing was measured: a share of the rated power. Modelled, to be given as a range.

    Equation: E = \lambda P_\mathrm{rated} T_\mathrm{dev}
    Where: P_\mathrm{rated} = rated_power; \lambda = load; T_\mathrm{dev} = device_time
    Source: CodeCarbon, methodology (takes half of the TDP where it cannot measure), https://mlco2.github.io/codecarbon/
    Assumes: the mean power lies between 0.3 and 1.0 of the rating. An idle GPU lies below that band.
    """
    return load * rated_power * device_time


@formula
def power_at_load(*, idle_power: Watt, busy_power: Watt, load: Share) -> Watt:
    r"""Power of a device that is partly busy, on a line between idle and busy.

    Equation: P = P_\mathrm{idle} + \lambda (P_\mathrm{busy} - P_\mathrm{idle})
    Where: P_\mathrm{idle} = idle_power; P_\mathrm{busy} = busy_power; \lambda = load
    Source: Fan, Weber & Barroso 2007, ISCA, doi:10.1145/1250662.1250665
    Assumes: power rises in proportion to load; measured servers lie a little above the line in between.
    """
    return (1 - load) * idle_power + load * busy_power


@formula
def mean_power(*, energy: Joule, duration: Time) -> Watt:
    r"""Mean power in a window, from the energy that a counter gained.

    Equation: P = \frac{E}{t}
    Where: E = energy; t = duration
    Source: Definition
    Assumes: counter and clock are read at the same two moments.
    """
    return energy / duration


@formula
def energy_above_idle(*, energy: Joule, idle_power: Watt, duration: Second) -> Joule:
    r"""What the work added to the energy that the idle device would have taken in the same time.

    Equation: \max(0,\ E - P_\mathrm{idle} t)
    Where: E = energy; P_\mathrm{idle} = idle_power; t = duration
    Source: Luccioni, Viguier & Ligozat 2022, arXiv:2211.02001 (dynamic and idle consumption apart)
    Assumes: idle power is the same before and during the work. It is paid all the same, so report both.
    """
    return maximum(energy - idle_power * duration, 0 * energy)


@formula
def energy_of_work(
    *,
    flops: Flop,
    energy_per_flop: JoulePerFlop,
    bytes_moved: Byte,
    energy_per_byte: JoulePerByte,
    constant_power: Watt,
    duration: Second,
) -> Joule:
    r"""Energy of a kernel or a step: its operations, its traffic and the power that flows whatever it does.

    Equation: E = \varepsilon_\mathrm{flop} C + \varepsilon_\mathrm{mem} Q + P_0 t
    Where: C = flops; \varepsilon_\mathrm{flop} = energy_per_flop; Q = bytes_moved;
        \varepsilon_\mathrm{mem} = energy_per_byte; P_0 = constant_power; t = duration
    Source: Choi, Bedard, Fowler & Vuduc 2013, A Roofline Model of Energy, IPDPS, doi:10.1109/IPDPS.2013.77
    Assumes: energies add, though times overlap. The constants belong to one device, dtype and clock.
    """
    return energy_per_flop * flops + energy_per_byte * bytes_moved + constant_power * duration


# The facility


@formula
def power_usage_effectiveness(*, facility_energy: WattHour, it_energy: Spent) -> Number:
    r"""PUE: energy of a whole data centre over that of its computers.

    Equation: \mathrm{PUE} = \frac{E_\mathrm{facility}}{E_\mathrm{IT}}
    Where: E_\mathrm{facility} = facility_energy; E_\mathrm{IT} = it_energy
    Source: ISO/IEC 30134-2; The Green Grid 2012, white paper 49
    Assumes: both over a whole year. It says nothing about what the computers do with their share.
    """
    return facility_energy / it_energy


@formula
def facility_energy(*, it_energy: WattHour, pue: Pue) -> WattHour:
    r"""Energy that the data centre takes for a computation, with cooling and power conversion.

    Equation: E = \mathrm{PUE} \cdot E_\mathrm{IT}
    Where: E_\mathrm{IT} = it_energy; \mathrm{PUE} = pue
    Source: ISO/IEC 30134-2
    Assumes: the computation causes its share of the overhead, the yearly mean.
    """
    return pue * it_energy


@formula
def training_energy(*, device_power: Watt, device_time: DeviceSecond, pue: Pue) -> WattHour:
    r"""Energy of a run as its facility pays for it.

    Equation: E = \mathrm{PUE} \cdot P \, T_\mathrm{dev}
    Where: P = device_power; T_\mathrm{dev} = device_time; \mathrm{PUE} = pue
    Source: Patterson et al. 2021, arXiv:2104.10350, section 2.5
    Assumes: P is the mean power per device, its share of the host included or not: say which.
    """
    return facility_energy(it_energy=device_energy(device_power=device_power, device_time=device_time), pue=pue)


@formula
def electricity_cost(*, energy: WattHour, price: DollarPerJoule) -> Dollar:
    r"""What the electricity costs.

    Equation: K = E p
    Where: E = energy; p = price
    Source: Definition
    Assumes: a flat price; the hardware is not in it, and costs more.
    """
    return energy * price


# Carbon


@formula
def operational_carbon(*, energy: WattHour, carbon_intensity: GramPerJoule) -> Gram:
    r"""Carbon of the electricity used, location based: what the grid gave off where it was used.

    Equation: M = E \, I
    Where: E = energy; I = carbon_intensity
    Source: GHG Protocol Scope 2 Guidance 2015, chapter 6; Patterson et al. 2021, arXiv:2104.10350
    Assumes: the grid's mean intensity over the time of use. Say whether it counts the whole life of the plants.
    """
    return energy * carbon_intensity


@formula
def training_carbon(*, device_power: Watt, device_time: DeviceSecond, pue: Pue, carbon_intensity: GramPerJoule) -> Gram:
    r"""Carbon of the electricity of a run, location based.

    Equation: M = \mathrm{PUE} \cdot P \, T_\mathrm{dev} \, I
    Where: P = device_power; T_\mathrm{dev} = device_time; \mathrm{PUE} = pue; I = carbon_intensity
    Source: Patterson et al. 2021, arXiv:2104.10350, section 2.5
    Assumes: the mean power per device; the grid's mean intensity while the run went on. No embodied carbon.
    """
    energy = training_energy(device_power=device_power, device_time=device_time, pue=pue)
    return operational_carbon(energy=energy, carbon_intensity=carbon_intensity)


@formula
def market_based_carbon(
    *, energy: WattHour, contracted: Share, contracted_intensity: GramPerJoule, residual_intensity: GramPerJoule
) -> Gram:
    r"""Carbon of the electricity used, market based: what the contracts say.

    Equation: M = E \left(c I_c + (1 - c) I_r\right)
    Where: E = energy; c = contracted; I_c = contracted_intensity; I_r = residual_intensity
    Source: GHG Protocol Scope 2 Guidance 2015, chapter 6
    Assumes: certificates match use over a year, not hour by hour; the rest has the intensity of the residual mix.
    """
    return energy * (contracted * contracted_intensity + (1 - contracted) * residual_intensity)


@formula
def implied_intensity(*, carbon: Gram, energy: Spent) -> GramPerJoule:
    r"""The carbon intensity that a published pair of carbon and energy implies.

    Equation: I = \frac{M}{E}
    Where: M = carbon; E = energy
    Source: Definition
    Assumes: both numbers have the same boundary. If PUE is not in the energy, it is in this number.
    """
    return carbon / energy


@formula
def embodied_carbon(
    *, manufacturing_carbon: Gram, used: DeviceSecond, lifetime: Lifetime, busy: Annotated[Number, Range(1e-6, 1)]
) -> Gram:
    r"""A computation's share of the carbon that making its hardware gave off.

    Equation: M = M_\mathrm{made} \, \frac{T_\mathrm{dev}}{L u}
    Where: M_\mathrm{made} = manufacturing_carbon; T_\mathrm{dev} = used; L = lifetime; u = busy
    Source: Luccioni, Viguier & Ligozat 2022, arXiv:2211.02001 (embodied emissions)
    Assumes: the hardware's carbon is shared by its busy hours over its life. L and u are assumptions.
    """
    return manufacturing_carbon * used / (lifetime * busy)


@formula
def embodied_share(*, embodied: Gram, operational: Annotated[Gram, Range(1e-12, 1e24)]) -> Number:
    r"""Share of embodied carbon in the whole.

    Equation: \frac{M_e}{M_e + M_o}
    Where: M_e = embodied; M_o = operational
    Source: Definition
    Assumes: both are of the same computation. A cleaner grid raises the share.
    """
    return embodied / (embodied + operational)


# Water


@formula
def on_site_water(*, it_energy: WattHour, wue: LitrePerJoule) -> Litre:
    r"""Water that the data centre consumes, by its WUE.

    Equation: W = E_\mathrm{IT} \cdot \mathrm{WUE}
    Where: E_\mathrm{IT} = it_energy; \mathrm{WUE} = wue
    Source: ISO/IEC 30134-9; The Green Grid 2011, white paper 35
    Assumes: WUE counts per IT energy, over a year, on site. Evaporation is highest on hot days.
    """
    return it_energy * wue


@formula
def water_consumption(*, it_energy: WattHour, wue: LitrePerJoule, pue: Pue, generation_water: LitrePerJoule) -> Litre:
    r"""Water consumed on site and where the electricity is made.

    Equation: W = E_\mathrm{IT} \left(\mathrm{WUE} + \mathrm{PUE} \cdot w\right)
    Where: E_\mathrm{IT} = it_energy; \mathrm{WUE} = wue; \mathrm{PUE} = pue; w = generation_water
    Source: Li, Yang, Islam & Ren 2023, arXiv:2304.03271, section 3
    Assumes: w is the water consumed per energy generated, the grid's mean. Water for making chips is not in it.
    """
    return it_energy * (wue + pue * generation_water)


# Useful work


@formula
def hardware_efficiency(*, flops: Flop, energy: Joules) -> FlopPerJoule:
    r"""Operations per joule, which is performance per watt.

    Equation: \frac{C}{E}
    Where: C = flops; E = energy
    Source: Definition; Green500 list (FP64 Linpack)
    Assumes: operations of one dtype. Operations done again in the backward pass count, and teach the model nothing.
    """
    return flops / energy


@formula
def performance_per_watt(*, performance: FlopPerSecond, power: Annotated[Watt, Range(1e-9, 1e12)]) -> FlopPerJoule:
    r"""Operations per joule, from performance and power.

    Equation: \frac{P}{W}
    Where: P = performance; W = power
    Source: Definition; Green500 list (FP64 Linpack)
    Assumes: both are means over the same time. A data sheet's peak over its TDP is what no program reaches.
    """
    return performance / power


@formula
def tokens_per_joule(*, tokens: Tokens, energy: Joules) -> TokenPerJoule:
    r"""Useful work per joule of a language model.

    Equation: \frac{D}{E}
    Where: D = tokens; E = energy
    Source: Definition
    Assumes: tokens of one tokenizer, at a quality that is said beside it.
    """
    return tokens / energy


@formula
def energy_per_token(*, power: Watt, throughput: Annotated[TokenPerSecond, Range(1e-9, 1e15)]) -> JoulePerToken:
    r"""Energy of one token while a server runs.

    Equation: \frac{P}{R}
    Where: P = power; R = throughput
    Source: Definition
    Assumes: the power of everything that serves; throughput of output tokens, or say what else is counted.
    """
    return power / throughput


@formula
def energy_of_query(
    *, energy_per_token: JoulePerToken, tokens: Tokens, overhead: Annotated[Count, Range(1, 100)], pue: Pue
) -> WattHour:
    r"""Energy of one query at the data centre's meter.

    Equation: E = e D h \cdot \mathrm{PUE}
    Where: e = energy_per_token; D = tokens; h = overhead; \mathrm{PUE} = pue
    Source: Elsworth et al. 2025, arXiv:2508.15734 (host, idle capacity and PUE are in its count)
    Assumes: h is the energy of accelerators, hosts and capacity held ready over that of busy accelerators.
    """
    return energy_per_token * tokens * overhead * pue


@formula
def time_per_sample(*, fixed_time: Second, time_of_one: Second, batch: Annotated[Count, Range(1, 1e12)]) -> Second:
    r"""Time of one sample in a batch: what a batch costs whatever its size is shared.

    Equation: \frac{t_0}{b} + t_1
    Where: t_0 = fixed_time; b = batch; t_1 = time_of_one
    Source: Definition
    Assumes: time rises on a line with the batch: weights are read once, and every sample is computed.
    """
    return fixed_time / batch + time_of_one


@formula
def step_from_forward(*, forward_time: Second) -> Second:
    r"""Time of a training step from that of a forward pass of the same batch.

    Equation: t = 3 t_f
    Where: t_f = forward_time
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1 (the backward pass has twice the operations)
    Assumes: the backward pass runs at the forward pass's rate; the update takes no time; nothing is recomputed.
    """
    return 3 * forward_time


@formula
def energy_per_sample(*, fixed_energy: Joule, energy_of_one: Joule, batch: Annotated[Count, Range(1, 1e12)]) -> Joule:
    r"""Energy of one sample in a batch: what a batch costs whatever its size is shared.

    Equation: e = \frac{E_0}{b} + e_1
    Where: E_0 = fixed_energy; b = batch; e_1 = energy_of_one
    Source: Definition
    Assumes: energy rises on a line with the batch, as time does from the ridge point on.
    """
    return fixed_energy / batch + energy_of_one


# Power limits and clocks


@formula
def zeus_cost(*, energy: Joule, duration: Second, largest_power: Watt, energy_weight: Share) -> Joule:
    r"""Cost that trades energy for time: 1 minds energy alone, 0 time alone.

    Equation: \eta E + (1 - \eta) P_\mathrm{max} t
    Where: E = energy; t = duration; P_\mathrm{max} = largest_power; \eta = energy_weight
    Source: You, Chung & Chowdhury 2023, NSDI, arXiv:2208.06102 (its cost metric)
    Assumes: a second is worth the energy that the device takes in it at its largest power limit.
    """
    return energy_weight * energy + (1 - energy_weight) * largest_power * duration


@formula
def slowed_energy(
    *, dynamic_energy: Joule, static_power: Watt, duration: Second, slowdown: Annotated[Count, Range(1, 1e3)]
) -> Joule:
    r"""Energy of the same work at a lower clock: less for switching, more for staying on longer.

    Equation: E(s) = \frac{E_\mathrm{dyn}}{s^2} + P_\mathrm{static} \, s t
    Where: E_\mathrm{dyn} = dynamic_energy; P_\mathrm{static} = static_power; t = duration; s = slowdown
    Source: Weiser, Welch, Demers & Shenker 1994, OSDI (a lower clock saves energy through a lower voltage)
    Assumes: voltage falls with the clock, until it reaches its least, and energy with its square; time rises.
    """
    return dynamic_energy / slowdown**2 + static_power * duration * slowdown


@formula
def best_slowdown(*, dynamic_energy: Joule, static_power: Annotated[Watt, Range(1e-9, 1e12)], duration: Time) -> Number:
    r"""The slowdown of least energy; slower than that, staying on costs more than switching less saves.

    Equation: s^{*} = \max\left(1, \sqrt[3]{\frac{2 E_\mathrm{dyn}}{P_\mathrm{static} t}}\right)
    Where: E_\mathrm{dyn} = dynamic_energy; P_\mathrm{static} = static_power; t = duration
    Source: Definition (where the derivative of the energy is zero)
    Assumes: what `slowed_energy` assumes.
    """
    return maximum((2 * dynamic_energy / (static_power * duration)) ** (1 / 3), 1)


@formula
def intrinsic_bloat(*, dynamic_energy: Joule, duration: Time, critical_duration: Time) -> Joule:
    r"""Energy that a pipeline stage spends on being done before the slowest one, and that no one gains from.

    Equation: E_\mathrm{dyn} \left(1 - \frac{1}{s^2}\right), \quad s = \max\left(1, \frac{t_\mathrm{max}}{t}\right)
    Where: E_\mathrm{dyn} = dynamic_energy; t = duration; t_\mathrm{max} = critical_duration
    Source: Chung et al. 2024, SOSP, arXiv:2312.06902 (intrinsic bloat); the square as in `slowed_energy`
    Assumes: the stage stays on and waits, so that its static energy is the same either way.
    """
    slowdown = maximum(critical_duration / duration, 1)
    return dynamic_energy * (1 - 1 / slowdown**2)


# Many small devices


@formula
def transfer_energy(*, bytes_sent: Byte, energy_per_byte: JoulePerByte) -> WattHour:
    r"""Energy that a network takes for a transfer, by its yearly mean.

    Equation: E = S \kappa
    Where: S = bytes_sent; \kappa = energy_per_byte
    Source: Aslan, Mayers, Koomey & France 2018, J. Ind. Ecol. 22(4), doi:10.1111/jiec.12630
    Assumes: a share by volume. Network devices take nearly as much idle as busy, so one transfer saves less.
    """
    return bytes_sent * energy_per_byte


@formula
def federated_energy(
    *,
    rounds: Count,
    devices_per_round: Count,
    device_power: Watt,
    local_time: Second,
    bytes_sent: Byte,
    energy_per_byte: JoulePerByte,
) -> WattHour:
    r"""Energy of federated learning: the sum over all rounds and over the devices of each, with the network.

    Equation: E = R \, n \left(P t + S \kappa\right)
    Where: R = rounds; n = devices_per_round; P = device_power; t = local_time; S = bytes_sent; \kappa = energy_per_byte
    Source: Qiu et al. 2023, A First Look into the Carbon Footprint of Federated Learning, JMLR 24(129)
    Assumes: means over devices and rounds; S counts the model down and the update up; the server is not in it.
    """
    return (
        rounds
        * devices_per_round
        * (
            device_energy(device_power=device_power, device_time=local_time)
            + transfer_energy(bytes_sent=bytes_sent, energy_per_byte=energy_per_byte)
        )
    )


# Measuring


@formula
def counter_error(*, update_period: Second, window: Time) -> Number:
    r"""How far a counter's energy may be off, relative, because it changes only every so often.

    Equation: \varepsilon = \frac{\tau}{t}
    Where: \tau = update_period; t = window
    Source: Definition (each end of the window sees a value up to one period old)
    Assumes: steady power. A sensor that samples a part of the time adds an error of its own.
    """
    return update_period / window


@formula
def shortest_window(*, update_period: Second, tolerance: Annotated[Number, Range(1e-9, 1)]) -> Second:
    r"""The shortest window in which a counter's energy is right within a tolerance.

    Equation: t = \frac{\tau}{\varepsilon}
    Where: \tau = update_period; \varepsilon = tolerance
    Source: Definition (each end of the window sees a value up to one period old)
    Assumes: steady power. A sensor that samples a part of the time adds an error of its own.
    """
    return update_period / tolerance
