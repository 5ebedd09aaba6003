"""Calculators of the chapter on energy: footprint of a run, place and hour, power limit, tokens, devices, windows."""

from __future__ import annotations

from dataclasses import replace

from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import (
    Case,
    Choice,
    Curve,
    Formula,
    Line,
    Mark,
    Option,
    Output,
    Ratio,
    Slider,
    Sum,
    Table,
    Value,
    grouped,
    whole,
)
from efflab.calculators.picks import pick
from efflab.catalog import accelerators
from efflab.catalog.energy import LOADS, PER_KWH, facilities, power_curves, regions
from efflab.formulas import energy
from efflab.records import PERIODS
from efflab.units import GRAM_PER_JOULE, JOULE, NUMBER, SECOND, WATT, WATT_HOUR

HOUR = 3600.0
YEAR = 365.25 * 24 * HOUR
JEAN_ZAY, GOOGLE, WATER = "Jean Zay, 2022", "Google, 2024", "Microsoft, 2025"
FRANCE, POLAND = "France (Jean Zay), 2022", "Poland, 2023"
NO_BAND = "measured: no band"  # in place of a band's end
PER_GB = 3.6e6 / 1e9  # kWh/GB, in which studies of networks count, as J/B
GEMINI, POPULAR = 0.24, 2.9  # Wh of a query: Google's median text prompt of May 2025, and the guess of 2023 (de Vries)


# What is picked

_KINDS = {
    "world": "World",
    "country": "Countries",
    "cloud region": "Cloud regions",
    "as assumed": "As publications computed with",
}


def _regions(name: str, value: str, default: str, own: str, label: str) -> Choice:
    """A choice of grid: it sets the carbon intensity `value`."""
    options = [Option(r.name, sets={value: r.carbon_intensity}, group=_KINDS[r.kind]) for r in regions().values()]
    options.sort(key=lambda o: list(_KINDS.values()).index(o.group))  # one heading for each kind
    return pick(name, options, default=default, own={value: own}, label=label, shared=False)


def _with(choice: Choice, **sets: float) -> Choice:
    """The choice, each of whose options sets these values too."""
    return replace(choice, options=[replace(o, sets={**o.sets, **sets}) for o in choice.table.values()])


def _facilities(name: str, value: str, default: str, own: str, label: str) -> Choice:
    """A choice of data centre: it sets the PUE `value`."""
    options = [Option(f.name, sets={value: f.pue}) for f in facilities().values() if f.pue]
    return pick(name, options, default=default, own={value: own}, label=label, shared=False)


def _waters(name: str, value: str, default: str, own: str, label: str) -> Choice:
    """A choice of data centre: it sets the WUE `value`."""
    options = [Option(f.name, sets={value: f.wue}) for f in facilities().values() if f.wue is not None]
    return pick(name, options, default=default, own={value: own}, label=label, shared=False)


def _intensity(name: str, label: str, default: float = 400) -> Slider:
    return Slider(
        name,
        PER_KWH,
        1500 * PER_KWH,
        default=default * PER_KWH,
        scale="log",
        zero=True,
        per=PER_KWH,
        label=label,
        unit=GRAM_PER_JOULE,
    )


def _pue(name: str, label: str = "PUE") -> Slider:
    return Slider(name, 1, 3, default=1.2, steps=100, label=label)


def _litres(name: str, label: str, default: float, help: str = "") -> Slider:
    return Slider(
        name, 0.01 * PER_KWH, 20 * PER_KWH, default=default * PER_KWH, scale="log", zero=True, per=PER_KWH,
        label=label, help=help,
    )  # fmt: skip


def _price(name: str, label: str) -> Slider:
    return Slider(
        name, 0.01 * PER_KWH, 2 * PER_KWH, default=0.1 * PER_KWH, scale="log", zero=True, per=PER_KWH, label=label,
        help="of electricity; assumed",
    )  # fmt: skip


def _power(accelerator: str, mean: float, default: str = "rating", **sets: float) -> list[Choice | Slider]:
    """What is known of a device's power: a rating, of which it takes a share, or the mean that was measured.

    A rating gives a band, `LOADS` of it; a measured mean gives none, so that whatever is computed from the ends of
    the band has no value.
    """
    low, high = LOADS
    ratings = [Option(a.name, sets={"rated_power": a.tdp}, group=a.vendor) for a in accelerators().values() if a.tdp]
    return [
        Choice(
            "power_known",
            [
                Option(
                    "rating",
                    "A rating, such as the TDP",
                    sets={"low_load": low, "high_load": high, "one": 1, **sets},
                    takes={"busy_power": "rated_power", "load": "own_load"},
                ),
                Option(
                    "measured",
                    "The mean power, measured",
                    sets={"low_load": None, "high_load": None, "load": 1, "one": 1, **sets},
                    takes={"busy_power": "mean_power"},
                ),
            ],
            default=default,
            label="What is known",
        ),
        pick("accelerator", ratings, default=accelerator, own={"rated_power": "own_rated_power"}),
        Slider("own_rated_power", 0.01, 1e8, default=400, scale="log", label="Rated power", help="of a device or node"),
        Slider("own_load", 0.05, 1, default=1, steps=95, label="Share of the rating", help="drawn, on average"),
        Slider("mean_power", 0.01, 1e8, default=mean, scale="log", label="Mean power", help="of a device or node"),
    ]


# A run


def _ends(of: str, given: dict[str, str | float], name: str, label: str, formula: Formula) -> list[Output]:
    """An output at the ends of the band: `given` with least_ or most_ before the name of what it is `of`."""
    return [
        Output(formula, f"{end}_{name}", f"{label}, {said}", given={**given, of: f"{end}_{source}"}, absent=NO_BAND)
        for end, said in (("least", "at the least"), ("most", "at the most"))
        for source in [str(given[of])]
    ]


def _devices(name: str, load: str) -> Output:
    """Energy of the devices themselves at a share of their power."""
    return Output(energy.energy_from_rating, name, given={"rated_power": "busy_power", "load": load}, shown=False)


footprint = Calculator(
    name="training-footprint",
    topic="energy",
    title="What does this run take, and what does it give off?",
    intro="Hours of devices, their power, the data centre, the grid. It opens at BLOOM on 384 A100s in France, by the "
    "TDP as its authors counted.",
    inputs=[
        *grouped(
            "Run",
            *_power("A100 SXM 80GB", 330),
            Slider(
                "device_time",
                36,
                3.6e12,
                default=1082990 * HOUR,
                scale="log",
                per=HOUR,
                label="Hours of devices",
                help="GPU-hours; node-hours where the power is a node's",
            ),
        ),
        *grouped(
            "Data centre",
            _facilities("facility", "pue", JEAN_ZAY, "own_pue", "PUE of"),
            _pue("own_pue"),
            _waters("water", "wue", WATER, "own_wue", "Water on site as"),
            _litres("own_wue", "WUE", 1.0, "consumed on site"),
        ),
        *grouped(
            "Electricity",
            _regions("region", "carbon_intensity", FRANCE, "own_intensity", "Grid"),
            _intensity("own_intensity", "Carbon intensity"),
            _litres("generation_water", "Water of the power plants", 0, "consumed; 0 leaves it out"),
            Slider("contracted", 0, 1, default=0, label="Share under contract", help="certificates, power purchases"),
            _intensity("contracted_intensity", "Intensity under contract", 0),
            _price("price", "Price"),
        ),
        *grouped(
            "Hardware",
            Slider(
                "manufacturing_carbon",
                1e3,
                1e8,
                default=462.5e3,
                scale="log",
                zero=True,
                per=1e3,
                label="Carbon of making a device",
                help="with its share of a server; BLOOM's authors: 150 kg and an eighth of 2,500 kg",
            ),
            Slider("lifetime", YEAR / 2, 20 * YEAR, default=6 * YEAR, scale="log", per=YEAR, label="Lifetime"),
            Slider("busy", 0.05, 1, default=0.85, steps=95, label="Share of it in use"),
        ),
    ],
    outputs=[
        Output(energy.facility_energy, "meter_energy", "Energy at the meter"),
        Output(energy.operational_carbon, "carbon", "Carbon, location based", given={"energy": "meter_energy"}),
        *(  # two columns: energy, and the carbon of that energy
            output
            for pair in zip(
                _ends("it_energy", {"it_energy": "it_energy"}, "meter_energy", "Energy", energy.facility_energy),
                _ends("energy", {"energy": "meter_energy"}, "carbon", "Carbon", energy.operational_carbon),
                strict=True,
            )
            for output in pair
        ),
        Output(
            energy.market_based_carbon,
            "market_carbon",
            "Carbon, market based",
            given={"energy": "meter_energy", "residual_intensity": "carbon_intensity"},
        ),
        Output(energy.embodied_carbon, "embodied", "Carbon of the hardware", given={"used": "device_time"}),
        Output(energy.on_site_water, "site_water", "Water on site"),
        Output(energy.water_consumption, "all_water", "Water, with the power plants"),
        Output(energy.electricity_cost, "cost", "Electricity costs", given={"energy": "meter_energy"}),
        _devices("it_energy", "load"),
        _devices("least_it_energy", "low_load"),
        _devices("most_it_energy", "high_load"),
        Value("carbon_intensity", shown=False),
        Output(energy.embodied_share, "hardware", given={"operational": "carbon"}, shown=False),
        Ratio("hardware_share", "hardware", "one", percent=True, shown=False),
    ],
    curve=Curve(
        x="carbon_intensity",
        low=0,
        high=800 * PER_KWH,
        scale="linear-linear",
        lines=[
            Line("carbon", "this power"),
            Line("most_carbon", "the whole rating", faint=True),
            Line("least_carbon", "0.3 of the rating", faint=True),
        ],
        at=[("carbon_intensity", "carbon")],
        at_label="this run",
        x_label="Carbon intensity of the grid",
        y_label="Carbon, location based",
        describe="Carbon of the run against the carbon intensity of the grid, a straight line: {carbon} at "
        "{carbon_intensity}.",
    ),
    verdict=[
        Case(
            "Modelled from a rating: between {least_meter_energy} and {most_meter_energy} at the meter, and between "
            "{least_carbon} and {most_carbon}. A measured mean power would leave one number.",
            [("least_meter_energy", ">=", 0)],
        ),
        Case("From a measured power: {meter_energy} at the meter, and {carbon} where it was used."),
    ],
    cautions=[
        Case(
            "By its contracts it is {market_carbon}. The grid gave off {carbon} all the same: say both.",
            [("contracted", ">", 0)],
        ),
        Case(
            "Making the hardware gave off as much as {hardware_share} of the sum: on a clean grid it is what is left.",
            [("hardware_share", ">=", 0.2)],
        ),
        Case("The water of the power plants is left out.", [("generation_water", "==", 0)]),
    ],
    note="Devices and what they have a share in; network, storage and idle nodes belong to it where their power is in "
    "yours. Certificates are counted by the year, and the rest of the electricity at the grid's mean: a residual mix "
    "is often dirtier. Nothing here is measured but what you type.",
)


# Place and hour


def _place(name: str, label: str, facility: str, region: str, water: str) -> list[Choice | Slider]:
    """The inputs of one place; the values of the second one have `other_` before their names."""
    return grouped(
        label,
        _facilities(f"{name}facility", f"{name}pue", facility, f"own_{name}pue", "PUE of"),
        _pue(f"own_{name}pue"),
        _waters(f"{name}water", f"{name}wue", water, f"own_{name}wue", "Water on site as"),
        _litres(f"own_{name}wue", "WUE", 1.0, "consumed on site"),
        _regions(f"{name}region", f"{name}intensity", region, f"own_{name}intensity", "Grid"),
        _intensity(f"own_{name}intensity", "Carbon intensity"),
        _price(f"{name}price", "Price"),
    )


def _of_place(name: str, label: str, intensity: str) -> list[Output]:
    """What the run takes at one place."""
    meter = f"{name}meter_energy"
    return [
        Output(energy.facility_energy, meter, f"Energy {label}", given={"pue": f"{name}pue"}),
        Output(
            energy.operational_carbon,
            f"{name}carbon",
            f"Carbon {label}",
            given={"energy": meter, "carbon_intensity": intensity},
        ),
        Output(energy.on_site_water, f"{name}site_water", f"Water on site {label}", given={"wue": f"{name}wue"}),
        Output(
            energy.electricity_cost,
            f"{name}cost",
            f"Electricity {label}",
            given={"energy": meter, "price": f"{name}price"},
        ),
    ]


where = Calculator(
    name="where-and-when",
    topic="energy",
    title="How much less in another place, or at another hour?",
    intro="The same run twice. Nothing about the model, the code or the hardware changes.",
    inputs=[
        *grouped(
            "Run",
            Slider(
                "it_energy",
                HOUR,
                HOUR * 1e12,
                default=433.196e6 * HOUR,
                scale="log",
                per=HOUR,
                label="Energy of the computers",
            ),
            Slider(
                "hour_factor",
                0.1,
                2,
                default=1,
                steps=95,
                label="Hour there",
                unit=NUMBER,
                help="intensity in the hours chosen, over its mean",
            ),
        ),
        *_place("", "Here", JEAN_ZAY, POLAND, WATER),
        *[
            _with(i, one=1) if isinstance(i, Choice) and i.name == "other_region" else i
            for i in _place("other_", "There", JEAN_ZAY, FRANCE, WATER)
        ],
    ],
    outputs=[
        Ratio("carbon_share", "other_carbon", "carbon", label="Carbon there, of here", percent=True),
        *_of_place("", "here", "intensity"),
        *_of_place("other_", "there", "intensity_then"),
        Sum("water_saved", ["site_water"], minus=["other_site_water"], label="Water saved"),
        Sum("cost_saved", ["cost"], minus=["other_cost"], label="Money saved"),
        # A product is a quotient by the inverse.
        Ratio("inverse_factor", "one", "hour_factor", shown=False),
        Ratio("intensity_then", "other_intensity", "inverse_factor", unit=GRAM_PER_JOULE, shown=False),
        Ratio("times_less", "carbon", "other_carbon", shown=False),
        Ratio("times_more", "other_carbon", "carbon", shown=False),
    ],
    curve=Curve(
        x="hour_factor",
        scale="linear-linear",
        lines=[Line("other_carbon", "there"), Line("carbon", "here", faint=True)],
        at=[("hour_factor", "other_carbon")],
        at_label="there, at this hour",
        x_label="Intensity in the hours chosen, over its mean",
        y_label="Carbon",
        describe="Carbon there against the factor of the hour, a straight line through {other_carbon}; here it is "
        "{carbon}.",
    ),
    verdict=[
        Case("The same carbon in both places: {carbon}.", [("carbon", "==", "other_carbon")]),
        Case(
            "There: {other_carbon} in place of {carbon}, a factor of {times_less}. Location based, and by the "
            "mean of each grid.",
            [("other_carbon", "<", "carbon")],
        ),
        Case(
            "Here: there it would be {other_carbon} in place of {carbon}, {times_more} times as much.",
        ),
    ],
    cautions=[
        Case("It costs {cost_saved} less there.", [("cost_saved", ">", 0)]),
        Case("It costs more there: {other_cost} in place of {cost}.", [("cost_saved", "<", 0)]),
        Case("It takes {water_saved} less water on site there.", [("water_saved", ">", 0)]),
        Case(
            "It takes more water on site there: {other_site_water} in place of {site_water}.", [("water_saved", "<", 0)]
        ),
    ],
    note="Means over a year, except for the factor of the hour. What one more run makes a grid give off, its marginal "
    "intensity, can be higher or lower than its mean. Moving data and waiting have costs that are not here.",
)


# Power limits

_ETA = "energy_weight"
_MOST = max(len(c.limits) for c in power_curves().values())


def _limit(watts: float) -> str:
    return f"{watts:g} W"


def _curves() -> Choice:
    """A choice of recorded curve. Its rows are looked up by the limit; the verdict has them all, the last repeated."""
    options = []
    for c in power_curves().values():
        rows = [*c.limits, *[c.limits[-1]] * (_MOST - len(c.limits))]
        sets: dict[str, object] = {"largest_power": c.limits[-1].limit_w, "one": 1}
        sets |= {"energy_divisor": {_limit(r.limit_w): 1 / r.energy for r in c.limits}}
        sets |= {"time_divisor": {_limit(r.limit_w): 1 / r.time for r in c.limits}}
        for i, row in enumerate(rows):
            sets |= {f"watts_{i}": row.limit_w, f"energy_{i}_under": 1 / row.energy, f"time_{i}_under": 1 / row.time}
        options.append(Option(c.name, sets=sets))
    said = "{curve}: not at {limit}. It has: {has}. The nearest is {nearest}."
    looked_up = ("energy_divisor", "time_divisor")
    return Choice(
        "curve",
        options,
        default=options[0].name,
        label="Measured",
        by=dict.fromkeys(looked_up, "limit"),
        missing=dict.fromkeys(looked_up, said),
    )


def _limits() -> Choice:
    """Every limit at which some workload was measured."""
    watts = sorted({r.limit_w for c in power_curves().values() for r in c.limits})
    return Choice("limit", [_limit(w) for w in watts], default="150 W", label="Power limit", only_found=True)


def _costs() -> list[Output | Ratio]:
    """Energy, time and cost of every row of the curve, for the verdict."""
    found: list[Output | Ratio] = []
    for i in range(_MOST):
        found += [
            Ratio(f"energy_{i}", "full_energy", f"energy_{i}_under", unit=JOULE, shown=False),
            Ratio(f"time_{i}", "full_time", f"time_{i}_under", unit=SECOND, shown=False),
            Output(
                energy.zeus_cost, f"cost_{i}", given={"energy": f"energy_{i}", "duration": f"time_{i}"}, shown=False
            ),
            Ratio(f"limit_{i}", f"watts_{i}", "one", unit=WATT, shown=False),
            Ratio(f"energy_share_{i}", f"energy_{i}", "full_energy", percent=True, shown=False),
            Ratio(f"time_share_{i}", f"time_{i}", "full_time", percent=True, shown=False),
        ]
    return found


def _cheapest(i: int) -> list[tuple[str, str, str | float]]:
    """Row `i` costs no more than any other."""
    return [(f"cost_{i}", "<=", f"cost_{j}") for j in range(_MOST) if j != i]


def _best(i: int) -> str:
    """What to say where row `i` costs least."""
    said = (
        f"For η = {{energy_weight}} the best of the measured limits is {{limit_{i}}}: {{energy_share_{i}}} of the "
        f"energy and {{time_share_{i}}} of the time at full power."
    )
    lowest = " The lowest, {limit_0}, is not: it takes {energy_share_0} of the energy and {time_share_0} of the time."
    return said + (lowest if i else "")


limits = Calculator(
    name="power-limit",
    topic="energy",
    title="Which power limit?",
    intro="Energy and time under several limits as others measured them, for a run that you describe at full power. "
    "Only a limit at which the workload was measured can be chosen.",
    inputs=[
        _curves(),
        _limits(),
        Slider(_ETA, 0, 1, default=0.5, steps=100, label="Weight of energy, η", help="1: energy alone; 0: time alone"),
        Slider(
            "full_power",
            10,
            1000,
            default=220,
            scale="log",
            unit=WATT,
            label="Mean power without a limit",
            help="yours; measured",
        ),
        Slider(
            "full_time", 1, 1e9, default=24 * HOUR, scale="log", per=HOUR, unit=SECOND, label="Time without a limit"
        ),
    ],
    outputs=[
        Ratio("used", "full_energy", "energy_divisor", label="Energy", unit=JOULE),
        Ratio("billed", "used", "one", label="as it is billed", unit=WATT_HOUR),
        Ratio("takes", "full_time", "time_divisor", label="Time", unit=SECOND),
        Ratio("energy_share", "used", "full_energy", label="Energy, of full power", percent=True),
        Ratio("time_share", "takes", "full_time", label="Time, of full power", percent=True),
        Output(energy.zeus_cost, "zeus", "Cost (Zeus)", given={"energy": "used", "duration": "takes"}),
        Ratio("cost_share", "zeus", f"cost_{_MOST - 1}", label="Cost, of full power", percent=True),
        Ratio("inverse_power", "one", "full_power", shown=False),
        Ratio("full_energy", "full_time", "inverse_power", unit=JOULE, shown=False),
        *_costs(),
    ],
    curve=Curve(
        x=_ETA,
        scale="linear-linear",
        lines=[Line("cost_share", "{limit}")],
        vary="limit",
        beside=True,
        at=[(_ETA, "cost_share")],
        at_label="this limit",
        x_label="Weight of energy, η",
        y_label="Cost, of full power",
        from_zero=False,
        y_high=1.5,
        describe="Zeus's cost of {limit} against the weight of energy, relative to full power: {cost_share} at "
        "{energy_weight}.",
    ),
    compare=Table("limit", ["used", "takes", "cost_share"], label="Every limit that was measured"),
    verdict=[
        Case(
            f"For η = {{energy_weight}} no limit is best: full power, {{limit_{_MOST - 1}}}, costs least. The lowest "
            "limit, {limit_0}, takes {energy_share_0} of the energy and {time_share_0} of the time.",
            _cheapest(_MOST - 1),
        ),
        *(Case(_best(i), _cheapest(i)) for i in range(_MOST - 2)),
        Case(_best(_MOST - 2)),
    ],
    note="Recorded by others, relative to the largest limit; your run may have another curve. A limit needs "
    "administrator's rights. The energy is the GPU's: the host idles longer when the GPU is slower.",
)


# Tokens

tokens = Calculator(
    name="energy-per-token",
    topic="energy",
    title="How much energy does a query take?",
    intro="The power of what serves, over what it serves. It opens at Llama 2 70B on one H200 with 512 sequences at "
    "once, prompts of 128 tokens and answers of 128, as NVIDIA published its throughput.",
    inputs=[
        *grouped(
            "Server",
            *_power("H200 SXM", 500, gemini=GEMINI * HOUR, popular=POPULAR * HOUR, kilowatt_hour=1000 * HOUR),
            whole("devices", 65536, 1, "Devices"),
            Slider(
                "throughput", 0.1, 1e9, default=3014, scale="log", label="Throughput", help="tokens out, of all devices"
            ),
        ),
        *grouped(
            "Query",
            Slider("tokens", 1, 1e6, default=300, scale="log", integer=True, label="Tokens of an answer"),
            Slider(
                "overhead",
                1,
                5,
                default=1.6,
                steps=40,
                label="Hosts and idle capacity",
                help="of all that serves, over the busy accelerators",
            ),
            _facilities("facility", "pue", GOOGLE, "own_pue", "PUE of"),
            _pue("own_pue"),
        ),
    ],
    outputs=[
        Output(energy.energy_per_token, "token_energy", "Of a token", given={"power": "server_power"}),
        Output(energy.energy_of_query, "query", "Of a query", given={"energy_per_token": "token_energy"}),
        *[
            Output(
                energy.energy_of_query,
                f"{end}_query",
                f"Of a query, at the {end}",
                given={"energy_per_token": f"{end}_token"},
                absent=NO_BAND,
            )
            for end in ("least", "most")
        ],
        Ratio("queries", "kilowatt_hour", "query", label="Queries of a kWh"),
        Ratio("of_gemini", "query", "gemini", label="Of 0.24 Wh (Gemini)", percent=True),
        Ratio("of_popular", "query", "popular", label="Of 2.9 Wh (the popular claim)", percent=True),
        *[
            Output(energy.energy_per_token, f"{end}_token", given={"power": f"{end}_power"}, shown=False)
            for end in ("least", "most")
        ],
        *[
            Output(
                energy.node_power,
                f"{name}_power",
                given={"processor_power": 0, "memory_power": 0, "device_power": f"{name}_device"},
                shown=False,
            )
            for name in ("server", "least", "most")
        ],
        *[
            Output(energy.power_at_load, f"{name}_device", given={"idle_power": 0, "load": load}, shown=False)
            for name, load in (("server", "load"), ("least", "low_load"), ("most", "high_load"))
        ],
    ],
    curve=Curve(
        x="tokens",
        lines=[
            Line("query", "this power"),
            Line("most_query", "the whole rating", faint=True),
            Line("least_query", "0.3 of the rating", faint=True),
        ],
        at=[("tokens", "query")],
        at_label="this query",
        x_label="Tokens of an answer",
        y_label="Energy of a query",
        describe="Energy of a query against the tokens of its answer, both logarithmic, a straight line: {query} for "
        "{tokens}.",
    ),
    verdict=[
        Case(
            "{query}: more than the popular 2.9 Wh. {queries} queries take a kWh: a long answer, a small batch or "
            "devices that wait.",
            [("of_popular", ">=", 1)],
        ),
        Case(
            "{query}: between the 0.24 Wh that Google counts for a median text prompt and the popular 2.9 Wh. "
            "{queries} queries take a kWh.",
            [("of_gemini", ">=", 1)],
        ),
        Case(
            "{query}: {of_gemini} of the 0.24 Wh that Google counts for a median text prompt, {of_popular} of the "
            "popular 2.9 Wh. {queries} queries take a kWh.",
        ),
    ],
    cautions=[
        Case(
            "From a rating: between {least_query} and {most_query}.",
            [("least_query", ">=", 0)],
        ),
    ],
    note="The prompt is read on the same power: put a throughput that counts answers of your length after prompts of "
    "yours. Training, network and the reader's own device are not in it. Google's number is a median of its own, "
    "text only, and was not audited.",
)


# Many small devices

federated = Calculator(
    name="federated-energy",
    topic="energy",
    title="Federated, or in a data centre?",
    intro="The same training as the sum over all rounds and the devices of each, and on one accelerator. All "
    "numbers that it opens with are assumed.",
    inputs=[
        *grouped(
            "Federated",
            whole("rounds", 1e6, 500, "Rounds"),
            whole("devices_per_round", 1e6, 100, "Devices in a round"),
            Slider("device_power", 0.1, 500, default=5, scale="log", label="Power of a device", help="while it trains"),
            Slider("local_time", 1, 1e5, default=60, scale="log", label="Time of a device in a round"),
            Slider(
                "bytes_sent", 1e3, 1e12, default=100e6, scale="log", label="Sent", help="a device, a round, both ways"
            ),
            Slider(
                "energy_per_byte",
                0.001 * PER_GB,
                10 * PER_GB,
                default=0.06 * PER_GB,
                scale="log",
                zero=True,
                per=PER_GB,
                label="Energy of the network",
                help="by volume; fixed lines in 2015: 0.06 kWh/GB (Aslan et al. 2018)",
            ),
        ),
        *grouped(
            "In a data centre",
            Slider("central_power", 10, 1e6, default=400, scale="log", label="Mean power"),
            Slider("central_time", 36, 1e12, default=3 * HOUR, scale="log", per=HOUR, label="Hours of devices"),
            _facilities("facility", "pue", GOOGLE, "own_pue", "PUE of"),
            _pue("own_pue"),
        ),
    ],
    outputs=[
        Output(energy.federated_energy, "federated", "Federated"),
        Output(
            energy.training_energy,
            "central",
            "In the data centre",
            given={"device_power": "central_power", "device_time": "central_time"},
        ),
        Ratio("times", "federated", "central", label="Times as much"),
        Ratio("network_share", "network", "federated", label="Network, of the federated", percent=True),
        Output(energy.federated_energy, "computing", "Devices", given={"energy_per_byte": 0}, shown=False),
        Sum("network", ["federated"], minus=["computing"], label="Network", shown=False),
    ],
    curve=Curve(
        x="rounds",
        low=1,
        lines=[Line("federated", "federated"), Line("central", "in the data centre", faint=True)],
        at=[("rounds", "federated")],
        at_label="these rounds",
        x_label="Rounds",
        y_label="Energy",
        describe="Energy against the rounds, both logarithmic: federated it rises in proportion, {federated} for "
        "{rounds}; in the data centre it is {central}.",
    ),
    verdict=[
        Case(
            "Federated takes {times} times the energy, and {network_share} of it is the network: send less, or less "
            "often. What it buys is that the data stay where they are.",
            [("times", ">", 1), ("network_share", ">", 0.5)],
        ),
        Case(
            "Federated takes {times} times the energy, most of it in the devices: fewer rounds, or fewer devices in a "
            "round. What it buys is that the data stay where they are.",
            [("times", ">", 1)],
        ),
        Case(
            "Here the data centre takes more: {central} against {federated}. The carbon depends on the grids: those of "
            "the devices are where the people are.",
        ),
    ],
    note="A network takes nearly as much idle as busy; its energy by volume is a share of the yearly mean, and falls "
    "from year to year. The server that adds up the updates is not counted.",
)


# Windows

window = Calculator(
    name="measuring-window",
    topic="energy",
    title="How long must a window be?",
    intro="A counter changes only every so often. It opens at NVML's 100 ms, and a window in which a training step "
    "may well end.",
    inputs=[
        _with(
            pick(
                "counter",
                [
                    Option("NVML", "NVML: NVIDIA GPUs", sets={"update_period": PERIODS["nvml-counter"]}),
                    Option("RAPL", "RAPL: packages of a CPU", sets={"update_period": PERIODS["rapl"]}),
                ],
                default="NVML",
                own={"update_period": "own_period"},
                label="Counter",
            ),
            one=1,
        ),
        Slider("own_period", 1e-5, 10, default=1, scale="log", label="It changes every"),
        Slider("window", 1e-4, 1e4, default=0.3, scale="log", label="Window"),
        Slider("tolerance", 1e-4, 0.5, default=0.01, scale="log", label="Tolerated error", unit=NUMBER),
    ],
    outputs=[
        Ratio("error_share", "off", "one", label="Off by at most", percent=True),
        Output(energy.shortest_window, "shortest", "Shortest window"),
        Ratio("periods", "shortest", "update_period", label="Periods in the shortest window"),
        Output(energy.counter_error, "off", shown=False),
        Ratio("wanted", "tolerance", "one", percent=True, shown=False),
    ],
    curve=Curve(
        x="window",
        lines=[Line("error_share")],
        at=[("window", "error_share")],
        at_label="this window",
        marks=[Mark("shortest", "shortest window", "wanted")],
        x_label="Window",
        y_label="Error",
        describe="The largest error against the window, both logarithmic, falling in proportion: {error_share} at "
        "{window}.",
    ),
    verdict=[
        Case(
            "Too short: in {window} the counter has hardly moved. Repeat the work until the window is {shortest} long.",
            [("error_share", ">=", 1)],
        ),
        Case(
            "Too short: the energy may be off by {error_share}, and {wanted} was asked. Repeat the work until the "
            "window is {shortest} long.",
            [("error_share", ">", "wanted")],
        ),
        Case("Long enough: off by {error_share} at most."),
    ],
    note="For steady power and a sensor that misses nothing. On A100 and H100 the sensor looks a quarter of the time: "
    "repeat the window at shifted moments.",
)
