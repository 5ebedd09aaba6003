"""The browser's arithmetic, sentences and texts against Python's."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import random
import re

import pytest

from efflab import calculators, units
from efflab.calculators import bundle
from efflab.calculators.parts import Slider
from efflab.catalog.energy import power_curves
from efflab.errors import EfflabError
from efflab.formulas import reading

from .conftest import random_state

NAMES = list(calculators.every())
SYMBOLS = list(units.UNITS)


@pytest.mark.parametrize("function", reading.every(), ids=lambda f: f.__name__)
def test_every_formula_is_there_with_its_parameters(js, function):
    """tests/formulas/test_every_formula.py compares what they compute."""
    says = reading.read(function)
    assert js.call(f"FORMULAS[{says.name!r}][0]") == list(says.where)
    assert js.call(f"typeof FORMULAS[{says.name!r}][1]") == "function"


@pytest.mark.parametrize("name", NAMES)
def test_sliders_stop_where_python_says(js, name):
    calculator = calculators.get(name)
    there = js.call("compile(spec).inputs.map((i) => i.stops ?? null)", spec=bundle.declaration(calculator))
    for given, stops in zip(calculator.inputs, there, strict=True):
        assert stops == (given.stops() if isinstance(given, Slider) else None), given.name


@pytest.mark.parametrize("name", NAMES)
def test_every_calculator_says_in_javascript_what_it_says_in_python(js, name):
    calculator, verdicts = calculators.get(name), set()
    declared = bundle.declaration(calculator)
    for seed in range(150):
        state = random_state(calculator, seed)
        here = calculator.evaluate(**state)
        there = js.call(
            "(() => { const r = evaluate(compile(spec), state);"
            " return {...r, texts: Object.fromEntries(Object.keys(r.values).map((n) => [n, r.text(n)]))}; })()",
            spec=declared,
            state=state,
        )
        for key in calculator.exact:  # to the last bit, −0 and NaN too
            assert repr(float(there["values"][key])) == repr(float(here.values[key])), (key, state)
        assert set(there["values"]) == set(here.values)
        for key, value in here.values.items():
            assert there["values"][key] == (value if value is None else pytest.approx(value, rel=1e-12, nan_ok=True)), (
                key
            )
        assert there["relevant"] == list(here.relevant)
        assert there["problem"] == here.problem
        assert there["texts"] == {n: here.text(n) for n in here.values}
        assert there["verdict"] == here.verdict
        verdicts.add(re.sub(r"[\d.,]+( × 10\S+)?", "#", here.verdict)[:30])
    assert len(verdicts) > 1 or len(calculator.verdict) == 1, "the random states reach one case only"


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_numbers_are_written_alike(js, symbol):
    draw = random.Random(symbol)
    values = [10 ** draw.uniform(-20, 26) for _ in range(2000)] + [draw.uniform(0, 2000) for _ in range(500)]
    values += [0.0, 1.0, 999.5, 999.4999, 0.0005, 1e-6, 999999.0, 1e6, 119.99, 120.0, 7200.0, 172800.0, 63115200.0]
    # halves that a binary number hits exactly, where rounding rules part
    values += [m / 8 * 10.0**e for m in (1, 3, 5, 7, 9, 1001, 1003) for e in range(-9, 16)]
    values += [float(n) for n in (1, 12, 125, 1235, 12345, 123450, 1234500)] + [-v for v in values[:200]]
    there = js.call("values.map((v) => show(v, symbol))", values=values, symbol=symbol)
    assert there == [units.show(v, units.UNITS[symbol]) for v in values]


def test_what_is_not_a_number_is_written_alike(js):
    assert js.call("[NaN, Infinity, -Infinity].map((v) => show(v, 's'))") == [
        units.show(v, units.SECOND) for v in (math.nan, math.inf, -math.inf)
    ]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_same_spellings_of_a_unit_are_accepted(js, symbol):
    assert js.call("UNITS[symbol].accepted", symbol=symbol) == units.UNITS[symbol].accepted()


QUANTITIES = [
    "4.8 TB/s", "4.8TB/s", "4800 GB/s", "4.8e12 B/s", "1 TiB/s", "3.14e23", "3.14×10^23 FLOP", "3.14 × 10²³ FLOP",
    "1,024", "1,02", "3,2 s", "5", "5 µs", "5 us", "5 ms", "-3 s", "−3 s", "1_000 B", "512 MiB", "512 Mb", "512 gb",
    "10 gbps",    "", "abc", "nine s", "10 %", "2x", "1e5e3", "1e5×10^3 s", "3 h", "2 days", "1.5 years", "206 FLOP/B",
    "206 FLOPs/byte", "989 TFLOPS", "989 TFLOPs", "12 parsec", "2^12",
    "2 ** 30 B", "10^-5 s", "2^12.5", "3^2", "10^999", "don't", "1 o'clock",
    "1/4", "−1.5 / .5", "1/0", "1/4/2", "1/3 s", "12 kWh", "700 W", ".5 s", "1. s", " 7  kB ", "1e400 s",
]  # fmt: skip


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_quantities_are_read_alike_and_refused_in_the_same_words(js, symbol):
    for text in QUANTITIES:
        try:
            here = units.parse(text, units.UNITS[symbol], "size")
        except EfflabError as error:
            here = str(error)
        there = js.call(
            "(() => { try { const v = parse(text, symbol, 'size'); return Number.isFinite(v) ? v : 'inf'; }"
            " catch (e) { return e.message; } })()",
            text=text,
            symbol=symbol,
        )
        assert there == ("inf" if here == math.inf else here), text


MORE = ["7", "1e21", "weeks", "3 weeks", "128k", "128 Ki", "1,5k", "1e30M", "2^12.5", "7 GB", "-3k", "x k", "1 year"]


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_refused_in_the_same_words(js, name):
    calculator = calculators.get(name)
    declared = bundle.declaration(calculator)
    for given in calculator.inputs:
        for value in ["", "x", "1e300", "-1", "0", " 0 ", 0, -5, 1e300, 2.5, "2.5", "4096.5", "3 h", "nonesuch", *MORE]:
            try:
                calculator.accept(given.name, value)
                here = None
            except EfflabError as error:
                here = str(error)
            if isinstance(value, int | float) and declared_kind(declared, given.name) == "choice":
                continue
            if isinstance(value, int | float) and here and "has no unit" in here:
                continue
            there = js.call(
                "(() => { const c = compile(spec), i = c.table.get(name);"
                " try { accept(c, i, value, name); return null; } catch (e) { return e.message; } })()",
                spec=declared,
                name=given.name,
                value=value,
            )
            # Python also names the nearest options
            assert there == (here and re.sub(r" Did you mean [^?]*\?", "", here)), (given.name, value)


def declared_kind(declared, name):
    return next(i["kind"] for i in declared["inputs"] if i["name"] == name)


def _drawn(js, calculator, state, what):
    """What the browser draws from: `what` is a function of the compiled calculator `c` and the state."""
    return js.call(
        f"(() => {{ const c = compile(spec); return {what}; }})()", spec=bundle.declaration(calculator), state=state
    )


@pytest.mark.parametrize("name", [n for n in NAMES if calculators.get(n).stack])
def test_a_stack_holds_and_lists_what_python_says(js, name):
    calculator, kinds = calculators.get(name), set()
    for seed in range(60):
        state = random_state(calculator, seed)
        result = calculator.evaluate(**state)
        there = _drawn(js, calculator, state, "[listed(c, state), bars(c, state)]")
        assert [tuple(row) for row in there[0]] == result.listed()
        for bar, parts in zip(there[1], result.bars().values(), strict=True):
            values = list(parts.values())
            assert [*bar["parts"], bar["capacity"]] == pytest.approx(values, rel=1e-12)
            known = [v for v in values[:-1] if v is not None]
            assert bar["total"] == (pytest.approx(math.fsum(known)) if known else None)
        kinds |= {row[0] for row in there[0]}
    assert {"free", "over"} <= kinds, "the random states are all on one side of the capacity"


@pytest.mark.parametrize("name", [n for n in NAMES if calculators.get(n).compare])
def test_a_table_says_what_python_says(js, name):
    calculator = calculators.get(name)
    for seed in range(40):
        state = random_state(calculator, seed)
        result, table = calculator.evaluate(**state), calculator.compare
        text = "cellOf(c, r.state, c.compare.columns[i].name, v)"
        there = _drawn(js, calculator, state, f"compared(c, state).map((r) => r.values.map((v, i) => {text}))")
        for row, (option, values) in zip(there, result.rows().items(), strict=True):
            alone = calculator.evaluate(**state | {table.vary: option})
            assert list(values.values()) == pytest.approx([alone.values[n] for n in table.columns], nan_ok=True)
            assert row == [calculator.cell(n, state, v) for n, v in values.items()]
        heads = _drawn(js, calculator, state, "c.compare.columns.map((o) => headOf(c, o))")
        assert heads == [calculator.head(n) for n in table.columns]


@pytest.mark.parametrize("name", NAMES)
def test_the_copied_python_runs_and_gives_the_same_numbers(js, name):
    calculator = calculators.get(name)
    declared = bundle.declaration(calculator)
    for seed in range(25):
        state = random_state(calculator, seed)
        result = calculator.evaluate(**state)
        code = js.call(
            "(() => { const c = compile(spec); return python(c, evaluate(c, state)); })()", spec=declared, state=state
        )
        values: dict[str, object] = {}
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "copied", "exec"), values)
        shown = [o for o in calculator.outputs if o.shown and result.values[o.name] is not None]
        for output in shown:
            wanted = pytest.approx(result.values[output.name], rel=1e-10, nan_ok=True)  # 12 digits are copied
            assert values[output.name] == wanted
        assert printed.getvalue().splitlines() == [f"{o.label}: {result.text(o.name)}" for o in shown]
        assert max(map(len, code.splitlines())) <= 120


def as_floats(values):
    """JavaScript writes 7.3e16 without an exponent, which Python reads as an integer."""
    return {n: v if isinstance(v, str) else float(v) for n, v in values.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_prediction_is_one_that_the_lab_book_takes(js, name, tmp_path):
    from efflab.records import LabBook

    calculator = calculators.get(name)
    for seed in range(20):
        state = random_state(calculator, seed)
        made = js.call(
            "(() => { const c = compile(spec);"
            " return prediction(c, evaluate(c, state), 'site', new Date(Date.UTC(2026, 10, 21)), random); })()",
            spec=bundle.declaration(calculator),
            state=state,
            random=f"{seed:08x}",
        )
        file = tmp_path / f"download-{seed}.json"
        file.write_text(json.dumps(made))
        LabBook(tmp_path / "labbook").add(file)
        here = calculator.evaluate(**state)
        kept = next(p for p in LabBook(tmp_path / "labbook").predictions() if p.id == made["id"])
        assert (kept.topic, kept.calculator, kept.created) == (calculator.topic, name, "2026-11-21T00:00:00Z")
        assert as_floats(kept.inputs) == as_floats({n: here.state[n] for n in here.relevant})
        assert {n: (q.value, q.unit) for n, q in kept.outputs.items()} == {
            n: (pytest.approx(q["value"], rel=1e-12), q["unit"]) for n, q in here.outputs().items()
        }


@pytest.mark.parametrize("name", NAMES)
def test_a_link_restores_its_state(js, name):
    calculator = calculators.get(name)
    for seed in range(30):
        state = random_state(calculator, seed)
        found = js.call(
            "(() => { const c = compile(spec), r = evaluate(c, state);"
            " return [fragment('here', r), restored(c, fragment('here', r).split('?')[1]), r.relevant]; })()",
            spec=bundle.declaration(calculator),
            state=state,
        )
        assert found[0].startswith("#here?")
        assert found[1]["problems"] == []
        wanted = as_floats({n: state[n] for n in found[2]})
        assert as_floats(found[1]["state"]) == {
            n: v if isinstance(v, str) else pytest.approx(v, rel=1e-11) for n, v in wanted.items()
        }


def test_what_a_reader_takes_away_has_no_noise_of_binary_numbers(js):
    """10 × 1e-6 is 9.999999999999999e-6: neither the state, nor the link, nor the Python may say so."""
    calculator = calculators.get("fusion")
    texts = js.call(
        "(() => { const c = compile(spec), overhead = accept(c, c.table.get('overhead'), '10 µs', 'x');"
        " const r = evaluate(c, {...state, overhead}), noisy = evaluate(c, {...state, overhead: 9.999999999999999e-6});"
        " return [String(overhead), fragment('f', r), python(c, r), fragment('f', noisy), python(c, noisy)]; })()",
        spec=bundle.declaration(calculator),
        state=calculator.defaults(),
    )
    assert texts[0] == "0.00001" and "overhead=0.00001&" in texts[1] and "overhead = 1e-5  # 10 µs\n" in texts[2]
    assert not any("99999" in text for text in texts)
    assert calculator.evaluate(overhead="10 µs").state["overhead"] == 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_sites_script_gives_every_calculator_its_declaration(js, name):
    """Declarations share their inputs there; compiled they are what the widget gets."""
    calculator = calculators.get(name)
    found = js.call(
        "(() => { let given; const efflabCalculators = { add: (g) => { given = g; } };"
        f" {bundle.topic_script(calculator.topic)}; const d = given.declarations[name];"
        " return {...d, inputs: d.inputs.map((i) => given.inputs[i])}; })()",
        name=name,
    )
    assert found == json.loads(bundle.as_json(bundle.declaration(calculator)))


def test_a_dtype_without_a_peak_offers_the_nearest(js):
    """Nearest by hand: the next narrower or wider floating-point type."""
    calculator = calculators.get("roofline-explorer")
    wanted = {("T4", "bf16"): "fp16", ("V100 SXM2 32GB", "bf16"): "fp16", ("A100 SXM 80GB", "fp8"): "fp16",
              ("H200 SXM", "fp4"): "fp8", ("T4", "tf32"): "fp32", ("L4", "fp64"): "fp32",
              ("H200 SXM", "bf16"): None}  # fmt: skip
    for (accelerator, dtype), nearest in wanted.items():
        there = js.call(
            "(() => { const r = evaluate(compile(spec), state); return [r.verdict, r.offer]; })()",
            spec=bundle.declaration(calculator),
            state=calculator.state(accelerator=accelerator, dtype=dtype),
        )
        assert there[0] == calculator.evaluate(accelerator=accelerator, dtype=dtype).verdict
        assert there[1] == (nearest and {"name": "dtype", "value": nearest, "label": nearest})
        assert not nearest or there[0].endswith(f"The nearest is {nearest}.")


def test_a_bad_link_keeps_what_is_good_and_says_what_is_not(js):
    calculator = calculators.get("roofline-explorer")
    found = js.call(
        "restored(compile(spec), query)",
        query="kernel=softmax&rows=abc&columns=0&batch=9e99&dtype=bf17&colour=red&overhead=5%20%C2%B5s&m=&n=%E0%A4%A",
        spec=bundle.declaration(calculator),
    )
    assert found["state"] == {"kernel": "softmax", "overhead": pytest.approx(5e-6)}
    told = " ".join(found["problems"])
    for word in ("rows", "columns", "batch", "dtype", "colour", "m: no number", "n cannot be read"):
        assert word in told


def _drawing(js, name, width=640, **state):
    calculator = calculators.get(name)
    return js.call(
        "(() => { const c = compile(spec); return draw(c, evaluate(c, state), width, [], 'id'); })()",
        spec=bundle.declaration(calculator),
        state=calculator.state(**state),
        width=width,
    )["svg"]


def test_the_drawn_point_is_on_the_roof_and_the_roof_bends_at_the_ridge(js):
    """Read the drawing back: the axes' ticks give its scale, with which the dot and the bend are placed."""
    svg = _drawing(js, "roofline-explorer", kernel="gemv")
    here = calculators.get("roofline-explorer").evaluate(kernel="gemv")
    ticks_x = {
        t: float(x)
        for x, t in re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle" class="tick">([\d.,]+)<', svg)
    }
    ticks_y = {
        t: float(y) - 4
        for y, t in re.findall(r'<text x="[\d.]+" y="([\d.]+)" text-anchor="end" class="tick">([\d.,]+)<', svg)
    }
    decade_x, decade_y = ticks_x["10"] - ticks_x["1"], ticks_y["1"] - ticks_y["10"]

    def place(intensity, tera):
        return ticks_x["1"] + math.log10(intensity) * decade_x, ticks_y["1"] - math.log10(tera) * decade_y

    cx, cy = map(float, re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="6" class="here"', svg).groups())
    assert (cx, cy) == pytest.approx(place(here["arithmetic_intensity"], here["performance"] / 1e12), abs=0.5)
    roof = [
        tuple(map(float, p.split(","))) for p in re.search(r'<path d="M([^"]+)" class="line line-0"', svg)[1].split("L")
    ]
    bend = place(here["ridge_point"], 989.4)
    assert min(math.dist(p, bend) for p in roof) < 0.5
    assert roof[-1][1] == pytest.approx(bend[1], abs=0.2)
    slope = (roof[0][1] - bend[1]) / decade_y / ((bend[0] - roof[0][0]) / decade_x)
    assert slope == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", [n for n in NAMES if calculators.get(n).curve])
@pytest.mark.parametrize("width", [320, 640])
def test_every_drawing_stays_in_its_frame(js, name, width):
    for seed in range(40):
        calculator = calculators.get(name)
        svg = _drawing(js, name, width, **random_state(calculator, seed))
        if not svg:
            assert calculator.evaluate(**random_state(calculator, seed)).problem
            continue
        assert "NaN" not in svg and "Infinity" not in svg and "undefined" not in svg
        for x, y in re.findall(r'<(?:circle cx|text x)="([-\d.]+)" (?:cy|y)="([-\d.]+)"', svg):
            assert 0 <= float(x) <= width and 0 <= float(y) <= 400


def test_labels_of_an_axis_fit_and_keep_to_one_notation(js):
    for name, state in [("roofline-explorer", {}), ("roofline-explorer", {"kernel": "gemv", "overhead": "10 ms"}),
                        ("overhead", {}), ("fusion", {"operations": 1024})]:  # fmt: skip
        for width in (320, 400, 640):
            svg = _drawing(js, name, width, **state)
            ticks = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)" class="tick">([^<]+)<', svg)
            middles = [t for t in ticks if t[1] == "middle"]
            for x, anchor, text in ticks:
                assert float(x) + {"middle": 4 * len(text), "end": 0}[anchor] <= width, text
            assert middles
            up = {text for x, anchor, text in ticks if anchor == "end" and float(x) < 60}
            assert len({text.startswith("10") and len(text) > 2 and text[2] in "⁻⁰¹²³⁴⁵⁶⁷⁸⁹" for text in up}) == 1, up


def _up(svg):
    """The y axis: what it is called, and its ticks as written."""
    title = re.search(r'<text x="2" y="13" [^>]*class="title">([^<]+)<', svg)[1]
    return title, re.findall(r'text-anchor="end" class="tick">([^<]+)<', svg)


@pytest.mark.parametrize(
    ("name", "output", "state", "unit"),
    [
        ("training-footprint", "carbon", {}, "t"),
        ("training-footprint", "carbon", {"device_time": "20000 GPU-h"}, "kg"),
        ("where-and-when", "other_carbon", {}, "t"),
        ("energy-per-token", "query", {}, "Wh"),
        ("energy-per-token", "query", {"throughput": 1}, "Wh"),
        ("energy-per-token", "query", {"tokens": 1e6}, "Wh"),
        ("federated-energy", "federated", {}, "kWh"),
        ("federated-energy", "federated", {"rounds": 1_000_000}, "MWh"),
        ("measuring-window", "error_share", {}, "%"),
        ("power-limit", "cost_share", {}, "%"),
    ],
)
def test_an_axis_has_the_unit_of_the_result(js, name, output, state, unit):
    title, ticks = _up(_drawing(js, name, **state))
    assert title.endswith(f"({unit})"), title
    assert re.fullmatch(rf"[\d.,]+ ?{unit}", calculators.get(name).evaluate(**state).text(output))
    assert len(ticks) >= 3


def test_ticks_are_round_in_the_unit_that_is_read(js):
    """g/kWh over a footprint: in g/J its round ticks would be 0, 180, 360."""
    svg = _drawing(js, "training-footprint")
    along = re.findall(r'<text x="[\d.]+" y="[\d.]+" text-anchor="(?:middle|end)" class="tick">(\d+)<', svg)
    assert {"0", "200", "400", "600", "800"} <= set(along)


@pytest.mark.parametrize("width", [290, 640])
@pytest.mark.parametrize("curve", list(power_curves()))
def test_labels_beside_lines_stand_apart_in_the_order_of_the_ends(js, curve, width):
    svg = _drawing(js, "power-limit", width, curve=curve)
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="start" class="halo[^"]*">(\d+ W)<', svg)
    limits = power_curves()[curve].limits
    assert {text for *_, text in labels} == {f"{r.limit_w:g} W" for r in limits}
    places = sorted((float(y), text) for _, y, text in labels)
    assert all(b - a >= 12.9 for (a, _), (b, _) in itertools.pairwise(places))
    assert [text for _, text in places] == [f"{r.limit_w:g} W" for r in sorted(limits, key=lambda r: -r.energy)]
    assert all(float(x) + 7 * len(text) <= width for x, _, text in labels)


def test_a_limit_that_was_not_measured_cannot_be_chosen(js):
    limit, of_all = calculators.get("power-limit"), set()
    for curve, measured in power_curves().items():
        has = {f"{r.limit_w:g} W" for r in measured.limits}
        choice = "c.table.get('limit')"
        offered = f"{choice}.options.map((o) => o.name).filter((o) => !refused(c, state, {choice})(o))"
        there = _drawn(js, limit, {"curve": curve}, offered)
        here = limit.evaluate(curve=curve)
        assert set(there) == set(here.rows()) == has == set(limit.table["limit"].table) - here.refused("limit")
        of_all |= has
    assert of_all == set(limit.table["limit"].table)


def test_a_label_cuts_no_gap_into_the_lines_that_matter(js):
    """A faint line's label has a halo, so it is painted before the strong lines."""
    svg = _drawing(js, "roofline-explorer")
    strong = svg.index('class="line line-0"')
    assert 'class="halo">tf32<' in svg and svg.index('class="halo">tf32<') < strong


def test_nothing_is_evaluated_from_text():
    run = r"\beval\(|new Function|import\(|https?://|setAttribute\(.style"
    for source in (bundle.script(), *map(bundle.topic_script, bundle.topics())):
        assert not re.search(run, source)
    for calculator in calculators.every().values():
        assert not re.search(run, bundle.module(calculator))
