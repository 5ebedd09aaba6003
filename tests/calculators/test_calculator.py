"""Declarations, states and the roofline's calculators, in Python."""

from __future__ import annotations

import dataclasses
import importlib
import re

import numpy as np
import pytest

from efflab import calculators
from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import (
    Bits,
    Case,
    Choice,
    Curve,
    Line,
    Mark,
    NumberField,
    Option,
    Output,
    Ratio,
    Slider,
    Stack,
    Sum,
    Table,
    Value,
)
from efflab.catalog import accelerators
from efflab.errors import EfflabError
from efflab.formulas import roofline, scaling_laws
from efflab.records import Environment, Record, Sample
from efflab.units import BYTE, FLOP_PER_SECOND

BANDWIDTH = Slider("memory_bandwidth", 1e9, 1e13, default=1e12, scale="log")
PEAK = Slider("peak_performance", 1e9, 1e16, default=1e14, scale="log")
GOOD = {
    "name": "good", "title": "Good?", "topic": "roofline", "inputs": [BANDWIDTH, PEAK],
    "outputs": [roofline.ridge_point], "verdict": [Case("{ridge_point}.")],
}  # fmt: skip


def declare(**changes):
    return Calculator(**(GOOD | changes))


def test_a_small_declaration_computes():
    good = declare()
    assert good.evaluate(memory_bandwidth="2 TB/s")["ridge_point"] == 50
    assert good.evaluate(memory_bandwidth=2e12).verdict == "50 FLOP/B."
    assert good.evaluate().relevant == ("memory_bandwidth", "peak_performance")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "Bad Name"}, "lower case"),
        ({"inputs": [BANDWIDTH]}, "nothing gives 'peak_performance' a value (needed by ridge_point)"),
        ({"inputs": [BANDWIDTH, PEAK, PEAK]}, "'peak_performance' is declared twice"),
        ({"inputs": [BANDWIDTH, PEAK, Slider("colour", 1, 2, default=1)]}, "slider colour: no formula takes"),
        ({"inputs": [BANDWIDTH, dataclasses.replace(PEAK, default=1e17)]}, "the default 1e+17 is outside"),
        ({"inputs": [BANDWIDTH, dataclasses.replace(PEAK, low=0.0, scale="linear")]}, "needs more than zero"),
        ({"inputs": [BANDWIDTH, dataclasses.replace(PEAK, low=0.0)]}, "a log scale needs low > 0"),
        ({"inputs": [BANDWIDTH, dataclasses.replace(PEAK, zero=True)]}, "needs more than zero"),
        ({"inputs": [BANDWIDTH, dataclasses.replace(PEAK, low=1e17)]}, "must be less than high"),
        ({"inputs": [BANDWIDTH, dataclasses.replace(PEAK, scale="cubic")]}, "scale must be"),
        ({"inputs": [BANDWIDTH, dataclasses.replace(PEAK, high=float("inf"))]}, "high must be a finite number"),
        ({"inputs": [BANDWIDTH, dataclasses.replace(PEAK, unit=BYTE)]}, "its unit is 'B', the formula's 'FLOP/s'"),
        ({"inputs": [BANDWIDTH, dataclasses.replace(PEAK, default=1.5e9, integer=True, low=1.5)]}, "whole number"),
        ({"outputs": [len]}, "is neither a formula"),
        ({"outputs": [Output(len)]}, "is not a formula"),
        ({"outputs": [roofline.ridge_point, roofline.ridge_point]}, "'ridge_point' is declared twice"),
        ({"outputs": [Output(roofline.ridge_point, "memory_bandwidth")]}, "both an input and an output"),
        ({"outputs": [Output(roofline.ridge_point, given={"bandwidth": 1.0})]}, "Did you mean 'memory_bandwidth'"),
        (
            {"outputs": [Output(roofline.ridge_point, given={"memory_bandwidth": "ridge_point"})]},
            "'ridge_point' is FLOP/B and",
        ),
        ({"outputs": [roofline.ridge_point, Ratio("half", "ridge_pint", "ridge_point")]}, "nothing gives 'ridge_pint'"),
        ({"verdict": []}, "the last case must hold always"),
        ({"verdict": [Case("x", [("ridge_point", ">", 1)])]}, "the last case must hold always"),
        ({"verdict": [Case("{ridge_pont}")]}, "Did you mean 'ridge_point'"),
        ({"verdict": [Case("x", [("ridge_point", "=>", 1)]), Case("y")]}, "verdict: relation: '=>'"),
        ({"verdict": [Case("x", [("ridge", ">", 1)]), Case("y")]}, "verdict: name: 'ridge'"),
        ({"outputs": [roofline.ridge_point, Sum("s", of=["ridge_point", "peak_performance"])]}, "has one unit"),
        ({"outputs": [roofline.ridge_point, Sum("s", of=[])]}, "a Sum needs what it is of"),
        ({"outputs": [roofline.ridge_point, Sum("s", of=["ridge_pint"])]}, "nothing gives 'ridge_pint'"),
        ({"inputs": [BANDWIDTH, NumberField("peak_performance", "1")]}, "does not take every real number"),
        ({"inputs": [BANDWIDTH, PEAK, NumberField("colour", "1")]}, "number field colour: no formula takes"),
        ({"inputs": [BANDWIDTH, PEAK, NumberField("colour", "red")]}, "number field colour: default: "),
        ({"inputs": [BANDWIDTH, PEAK, NumberField("colour", 1.0)]}, "default must be text"),
        ({"stack": Stack([], "x")}, "stack: it needs at least one part"),
        ({"stack": Stack(["ridge_pont"], "x")}, "stack: name: 'ridge_pont'"),
        ({"stack": Stack(["ridge_point"], "{x}")}, "stack: placeholder: 'x'"),
        ({"stack": Stack(["ridge_point"], "x", capacity="peak_performance")}, "stack: 'ridge_point' is FLOP/B and"),
        ({"stack": Stack(["ridge_point"], "x", vary="dtype")}, "stack: vary is 'dtype', which is not a choice"),
        ({"compare": Table("dtype", ["ridge_point"], "x")}, "compare: vary is 'dtype', which is not a choice"),
        ({"compare": Table("", ["ridge_point"], "x")}, "compare: a table needs the choice"),
        ({"bits": Bits("ridge_point", "x")}, "bits: name: 'exponent_bits'"),
        ({"curve": Curve("peak_performance", [Line("ridge_point")], "x", low="rdge")}, "curve: name: 'rdge'"),
        (
            {
                "curve": Curve(
                    "peak_performance", [Line("ridge_point")], "x", marks=[Mark("peak_performance", "x", dot=True)]
                )
            },
            "a mark with a dot needs y",
        ),
        ({"inputs": [BANDWIDTH, PEAK, Slider("roofline", 1, 2, default=1)]}, "slider roofline: no formula takes"),
        (
            {
                "inputs": [Slider("roofline", 1e9, 1e13, default=1e12, scale="log"), PEAK],
                "outputs": [Output(roofline.ridge_point, given={"memory_bandwidth": "roofline"})],
            },
            "'roofline' is a value here and a module of formulas",
        ),
        ({"curve": Curve("peak_performance", [], "x")}, "at least one line"),
        ({"curve": Curve("peak", [Line("ridge_point")], "x")}, "curve: name: 'peak'"),
        ({"curve": Curve("ridge_point", [Line("ridge_point")], "x")}, "low and high must be given"),
        ({"curve": Curve("ridge_point", [Line("ridge_point")], "x", low=0, high=1)}, "a log scale needs low > 0"),
        ({"curve": Curve("peak_performance", [Line("ridge_point")], "{x}")}, "placeholder: 'x'"),
        ({"curve": Curve("peak_performance", [Line("ridge_point")], "x", vary="dtype")}, "not a choice"),
        ({"curve": Curve("peak_performance", [Line("ridge_point")], "x", marks=[Mark("rdge", "x")])}, "'rdge'"),
    ],
)
def test_a_wrong_declaration_names_the_field_and_the_mend(changes, told):
    with pytest.raises(EfflabError) as error:
        declare(**changes)
    assert told in str(error.value)
    assert str(error.value).startswith("calculator ")


MEMORY = Choice(
    "device",
    [
        Option("small", sets={"room": 100e9}),
        Option("large", sets={"room": 200e9}),
        Option("unknown", sets={"room": None}),
    ],
    default="small",
)


def test_a_stack_adds_up_by_hand():
    """80 GB and 60 GB against 100 GB and 200 GB; a part without a value is left out."""
    both = [Slider("one", 1e9, 1e12, default=80e9), Slider("other", 1e9, 1e12, default=60e9)]
    parts = [
        Output(roofline.bytes_to_hide_overhead, "weights", given={"overhead": "one", "memory_bandwidth": 1.0}),
        Output(roofline.bytes_to_hide_overhead, "cache", given={"overhead": "other", "memory_bandwidth": 1.0}),
    ]
    here = declare(
        inputs=[*both, MEMORY],
        outputs=[*parts, Sum("total", of=["weights", "cache"]), Sum("free", of=["room"], minus=["total"])],
        verdict=[Case("{total} of {room}.")],
        stack=Stack(["weights", "cache"], "{total}", capacity="room", capacity_label="Room", vary="device"),
    )
    result = here.evaluate()
    assert (result["total"], result["free"]) == (140e9, -40e9)
    assert result.text("free") == "−40 GB" and result.verdict == "140 GB of 100 GB."
    assert result.listed() == [
        ("part", "Weights", "80 GB", "80%"),
        ("part", "Cache", "60 GB", "60%"),
        ("total", "Together", "140 GB", "140%"),
        ("capacity", "Room", "100 GB", ""),
        ("over", "Too much by", "40 GB", "40%"),
    ]
    assert here.evaluate(device="large").listed()[-1] == ("free", "Free", "60 GB", "30%")
    assert list(result.bars()) == ["small", "large", "unknown"]
    assert result.bars()["large"] == {"weights": 80e9, "cache": 60e9, "room": 200e9}
    unknown = here.evaluate(device="unknown")
    assert unknown["free"] is None and unknown.listed()[3] == ("capacity", "Room", "—", "")


def test_a_number_field_keeps_what_was_typed():
    explorer = calculators.get("number-format")
    here = explorer.evaluate(value=" 2^-24 ", format="FP16")
    assert here.state["value"] == "2^-24" and here["value"] == 2.0**-24
    for value, text in ((0.1, "0.1"), (float("inf"), "inf"), (-0.0, "-0"), (np.float32(0.5), "0.5"), (3, "3")):
        assert explorer.evaluate(value=value).state["value"] == text
    for value in ("", "one", "0.1 GB", True, None, [1]):
        with pytest.raises(EfflabError, match="value"):
            explorer.evaluate(value=value)
    made = explorer.evaluate(value="1e30", format="FP16").prediction()
    assert made.inputs["value"] == "1e30" and "stored" not in made.outputs, "an infinity is no prediction"


def test_every_slider_of_a_group_names_it_once_in_the_page():
    from efflab.calculators import markup

    grouped = [dataclasses.replace(i, group="Device") for i in (BANDWIDTH, PEAK)]
    assert markup.html(declare(inputs=grouped)).count('<p class="calc-group">Device</p>') == 1


def test_a_value_may_be_written_exactly():
    from efflab.formulas import precision

    format = {"exponent_bits": 5.0, "mantissa_bits": 10.0}
    here = declare(
        inputs=[NumberField("value", "0.1"), Choice("way", [
            Option("nearest", formulas={"stored": precision.round_to_format}, sets={"flavour": "ieee"}),
        ], default="nearest"), Slider("exponent_bits", 2, 8, default=5), Slider("mantissa_bits", 1, 10, default=10)],
        outputs=[Value("stored", exact=True)],
        verdict=[Case("{stored} for {value}.")],
    )  # fmt: skip
    assert here.evaluate(**format).verdict == "0.0999755859375 for 0.1."


def test_a_cycle_is_refused():
    with pytest.raises(EfflabError, match="flops needs bytes_moved needs flops: a cycle"):
        declare(
            inputs=[],
            outputs=[Ratio("flops", "bytes_moved", "bytes_moved"), Ratio("bytes_moved", "flops", "flops")],
            verdict=[Case("")],
        )


def test_every_way_of_choosing_is_checked():
    """The second option leaves a name without a value; the first alone would pass."""
    choice = Choice("kind", [Option("full", sets={"peak_performance": 1e12}), "empty"], default="full")
    with pytest.raises(EfflabError, match=r"nothing gives 'peak_performance' a value .* with kind 'empty'"):
        declare(inputs=[BANDWIDTH, choice])


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (Choice("kind", [], default=""), "it needs options"),
        (Choice("kind", ["a", "a"], default="a"), "a name of its own"),
        (Choice("kind", ["alpha", "beta"], default="alhpa"), "Did you mean 'alpha'"),
        (Choice("kind", [Option("a", formulas={"flops": len})], default="a"), "flops is not a formula"),
        (Choice("kind", [Option("a", sets={"ridge_point": 1})], default="a"), "which is also an output"),
        (Choice("kind", [Option("a", takes={"x": "mem"})], default="a"), "takes 'x' from 'mem', which is neither"),
        (Choice("kind", [Option("a", takes={"x": "memory_bandwidth"})], default="a"), "no formula takes 'x'"),
        (Choice("kind", ["a"], default="a", only_found=True), "no choice looks anything up by it"),
        (Choice("kind", ["a"], default="a", by={"peak_performance": "dtype"}), "which is not a choice"),
        (Choice("kind", ["a"], default="a", by={"peak_performance": "kind"}), "it needs missing"),
        (
            Choice("kind", ["a"], default="a", by={"peak_performance": "kind"}, missing={"peak_performance": "{what}"}),
            "placeholder: 'what'",
        ),
    ],
)
def test_a_wrong_choice_is_named(choice, told):
    with pytest.raises(EfflabError) as error:
        declare(inputs=[BANDWIDTH, PEAK, choice])
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"acelerator": "H200 SXM"}, "Did you mean 'accelerator'"),
        ({"accelerator": "H200"}, "Did you mean 'H200 SXM'"),
        ({"accelerator": 3}, "accelerator: 3 is not known"),
        ({"dtype": "bf17"}, "Did you mean 'bf16'"),
        ({"m": 0}, "m must be between 1 and 131,072, got 0"),
        ({"m": -4}, "m must be between"),
        ({"m": 1e9}, "m must be between"),
        ({"m": 2.5}, "m must be a whole number, got 2.5"),
        ({"m": 4096.5}, "m must be a whole number, got 4096.5."),
        ({"m": "4096.5"}, "m must be a whole number, got 4096.5."),
        ({"m": "2^12.5"}, "Write a plain number, such as 4,096."),
        ({"m": float("nan")}, "m must be a finite number"),
        ({"m": float("inf")}, "m must be a finite number"),
        ({"m": "4 GB"}, "m: unit 'GB'"),
        ({"m": None}, "m must be a number, got NoneType"),
        ({"m": True}, "m must be a number, got bool True"),
        ({"m": [4096]}, "m must be a number, got list"),
        ({"overhead": "5"}, "overhead: '5' has no unit"),
        ({"overhead": "5 GB"}, "overhead: unit 'GB' is not a unit of time"),
        ({"overhead": "1 h"}, "overhead must be 0 or between 100 ns and 10 ms, got 1 h."),
        ({"own_memory_bandwidth": "512 Mb/s"}, "means bits"),
    ],
)
def test_a_bad_state_names_the_input_and_the_mend(state, told):
    with pytest.raises(EfflabError) as error:
        calculators.get("roofline-explorer").evaluate(**state)
    assert told in str(error.value)


def test_numbers_come_as_numbers_numpy_scalars_and_texts():
    explorer = calculators.get("roofline-explorer")
    expected = explorer.evaluate(m=1024).values
    for m in (1024.0, np.int64(1024), np.float32(1024), "1,024", " 1024 ", "2^10"):
        assert explorer.evaluate(m=m).values == expected
    assert explorer.evaluate(overhead="0").values == explorer.evaluate(overhead="0 s").values


def test_an_unknown_calculator_names_the_nearest():
    with pytest.raises(EfflabError, match="Did you mean 'roofline-explorer'"):
        calculators.get("rooflin-explorer")


# The roofline's calculators against numbers worked by hand from the data sheet of an H200 SXM: 989.4 TFLOP/s dense
# bf16 and 4.8 TB/s.


def test_matmul_4096_on_an_h200():
    here = calculators.get("roofline-explorer").evaluate()
    assert here["flops"] == 137_438_953_472
    assert here["bytes_moved"] == 3 * 4096 * 4096 * 2
    assert here["arithmetic_intensity"] == pytest.approx(4096 / 3)
    assert here["time"] == pytest.approx(137.438953472e9 / 989.4e12)
    assert here.text("ridge_point") == "206 FLOP/B"
    assert here.verdict.startswith("Compute-bound: 6.62 times above the ridge point")


def test_the_verdict_follows_the_limit():
    explorer = calculators.get("roofline-explorer")
    assert explorer.evaluate(kernel="gemv").verdict.startswith("Memory-bound: 206 times below the ridge point")
    assert explorer.evaluate(m=16, n=16, k=16, overhead="5 µs").verdict.startswith(
        "Overhead-bound: the kernel takes 5 µs"
    )
    assert explorer.evaluate(m=620, n=620, k=620).verdict.startswith("Balanced")
    assert explorer.evaluate(kernel="attention_decode", kv_heads=64).verdict.startswith("No such attention")
    # the KV heads of another kernel say nothing about a matrix product
    assert explorer.evaluate(kernel="matmul", kv_heads=64).verdict.startswith("Compute-bound")


@pytest.mark.parametrize("kernel", roofline.KERNELS)
def test_only_the_inputs_that_matter_are_relevant(kernel):
    explorer = calculators.get("roofline-explorer")
    state = {"kernel": kernel, "overhead": 1e-3}
    here = explorer.evaluate(**state)
    for name in here.relevant:
        given = explorer.table[name]
        if isinstance(given, Choice):
            others = [o for o in given.table if o != here.state[name] and o != "custom"]
        else:
            others = [given.low, given.high]
        results = [explorer.evaluate(**state | {name: v}).values for v in others]
        assert any(r != here.values for r in results), f"{name} is shown and changes nothing"
    for name in set(explorer.table) - set(here.relevant):
        given = explorer.table[name]
        if isinstance(given, Slider):
            assert explorer.evaluate(**state | {name: given.low}).values == here.values


WITH_DTYPE = [c for c in calculators.every().values() if {"accelerator", "dtype"} <= set(c.table)]


@pytest.mark.parametrize("calculator", WITH_DTYPE, ids=lambda c: c.name)
def test_every_accelerator_and_dtype_computes_or_says_why_not(calculator):
    """Without a peak some output is missing and the verdict is the reason; with one every output is there."""
    refused = 0
    for accelerator in calculator.table["accelerator"].table:
        for dtype in calculator.table["dtype"].table:
            here = calculator.evaluate(accelerator=accelerator, dtype=dtype)
            peaks = accelerators()[accelerator].peak_dense if accelerator != "custom" else None
            # elementwise operations run on the vector units, in FP64 or FP32
            has = (
                peaks is None
                or ({"fp64": "fp64"}.get(dtype, "fp32") if calculator.name == "fusion" else dtype) in peaks
            )
            assert (here.problem is None) == has, (accelerator, dtype)
            assert (None in here.values.values()) == (not has) or calculator.name == "roofline-explorer"
            if not has:
                refused += 1
                assert here.verdict == here.problem and accelerator in here.verdict and dtype in here.verdict
                assert set(here.outputs()) < {o.name for o in calculator.outputs}
                assert all(isinstance(q["value"], float | int) for q in here.outputs().values())
    assert refused >= 8


def test_the_explorer_names_what_an_accelerator_has():
    here = calculators.get("roofline-explorer").evaluate(accelerator="T4")
    assert here.verdict == "T4 has no dense bf16 peak. It has: fp64, fp32, fp16, int8. The nearest is fp16."
    assert here["time"] is None


@pytest.mark.parametrize("calls", ["queued", "waited"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
@pytest.mark.parametrize("operations", [1, 8, 200, 1024])
@pytest.mark.parametrize("elements", [1024, 2**26])
def test_explorer_and_fusion_agree_on_the_same_chain(elements, operations, dtype, calls):
    """Both against the kernels added up by hand, on an H200: 4.8 TB/s, 66.9 TFLOP/s in FP32, 33.5 in FP64."""
    state = dict(elements=elements, operations=operations, dtype=dtype, calls=calls, overhead="10 µs")
    size, peak = {"bf16": (2, 66.9e12), "fp32": (4, 66.9e12), "fp64": (8, 33.5e12)}[dtype]

    def kernel(operations):
        work = max(2 * size * elements / 4.8e12, operations * elements / peak)
        return max(work, 1e-5) if calls == "queued" else work + 1e-5

    explorer, fusion = calculators.get("roofline-explorer"), calculators.get("fusion").evaluate(**state)
    for name, wanted in [("unfused_chain", operations * kernel(1)), ("fused_chain", kernel(operations))]:
        assert explorer.evaluate(kernel=name, **state)["time"] == pytest.approx(wanted)
        assert fusion[f"{name}_time"] == pytest.approx(wanted)


def test_a_chain_of_launches_is_overhead_bound_sooner_than_one():
    explorer = calculators.get("roofline-explorer")
    state = dict(elements=2**20, operations=64, overhead="2 µs")
    assert "its overhead alone 128 µs" in explorer.evaluate(kernel="unfused_chain", **state).verdict
    assert "it launches one kernel in place of 64" in calculators.get("fusion").evaluate(**state).verdict


def test_no_verdict_speaks_of_units_that_the_kernel_does_not_use():
    explorer = calculators.get("roofline-explorer")
    for kernel in explorer.table["kernel"].table:
        for accelerator in ("H200 SXM", "L4"):
            assert "tensor core" not in explorer.evaluate(kernel=kernel, accelerator=accelerator).verdict
    assert explorer.evaluate(kernel="softmax").text("ridge_point") == "13.9 FLOP/B"  # 66.9 over 4.8


def test_a_custom_accelerator_takes_its_own_numbers():
    ridge = calculators.get("ridge-point")
    own = ridge.evaluate(
        accelerator="custom", own_peak_performance="200 GFLOP/s", own_memory_bandwidth="36 GB/s", dtype="fp32"
    )
    assert own["ridge_point"] == pytest.approx(200 / 36)
    assert own["operations_to_hide_memory"] == pytest.approx(200 / 36 * 2 * 4)
    assert set(own.relevant) == {"accelerator", "dtype", "own_peak_performance", "own_memory_bandwidth"}


def test_a_custom_kernel_takes_its_own_numbers():
    own = calculators.get("roofline-explorer").evaluate(kernel="custom", own_flops="3 TFLOP", own_bytes_moved="2 GB")
    assert own["arithmetic_intensity"] == 1500
    assert {"own_flops", "own_bytes_moved"} <= set(own.relevant) and "m" not in own.relevant


def test_fusing_long_chains_stops_paying():
    fusion = calculators.get("fusion")
    slow = {
        "accelerator": "custom",
        "own_peak_performance": 1e12,
        "own_memory_bandwidth": 1e12,
        "overhead": 0.0,
        "dtype": "bf16",
    }
    # one read and one write of 2 B each take as long as 4 operations, so a longer fused chain is compute-bound
    assert fusion.evaluate(operations=3, **slow)["fusion_speedup"] == pytest.approx(3)
    assert fusion.evaluate(operations=40, **slow)["fusion_speedup"] == pytest.approx(4)
    assert "still memory-bound" in fusion.evaluate(operations=3, **slow).verdict
    assert "now compute-bound" in fusion.evaluate(operations=40, **slow).verdict
    assert fusion.evaluate(operations=1, **slow).verdict.startswith("Nothing to fuse")


def test_one_launch_is_worth_ten_gigaflop():
    overhead = calculators.get("overhead")
    here = overhead.evaluate()
    assert here["operations_to_hide_overhead"] == pytest.approx(989.4e12 * 10e-6)
    assert here["bytes_to_hide_overhead"] == pytest.approx(48e6)
    # 2 × 512³ operations and 3 × 512² × 2 bytes: 271 ns and 328 ns
    assert here["work_time"] == pytest.approx(3 * 512**2 * 2 / 4.8e12)
    assert here["time"] == pytest.approx(10e-6) and here.verdict.startswith("Overhead-bound")
    # 48e6 bytes are 3 × n² × 2 for n = 2,828; 9.894e9 operations are 2n³ for n = 1,704
    assert here["square_matmul_to_hide_overhead"] == pytest.approx(1703.9, rel=1e-4)
    assert overhead.evaluate(size=1703).verdict.startswith("Overhead-bound")
    assert overhead.evaluate(size=1704).verdict.startswith("Hidden")
    assert overhead.evaluate(calls="waited")["time"] == pytest.approx(10e-6 + here["work_time"])
    assert overhead.evaluate(size=16384).verdict.startswith("Hidden")
    assert overhead.evaluate(size=2048).verdict.startswith("Hidden")
    assert overhead.evaluate(size=2048, calls="waited").verdict.startswith("The work is the larger part")
    assert overhead.evaluate(overhead=0).verdict.startswith("No overhead to hide")


def test_a_sweep_bends_at_the_ridge_point():
    explorer = calculators.get("roofline-explorer")
    ridge = explorer.evaluate()["ridge_point"]
    xs = [ridge / 100, ridge / 10, ridge, ridge * 10]
    ys = explorer.sweep("attainable_performance", "arithmetic_intensity", xs)
    assert ys == pytest.approx([989.4e10, 989.4e11, 989.4e12, 989.4e12])
    assert explorer.sweep("time", "m", [1, 2], accelerator="A100 SXM 80GB", dtype="fp8") == [None, None]


def test_a_prediction_holds_what_mattered_and_what_came_out():
    made = calculators.get("roofline-explorer").evaluate(kernel="softmax").prediction(note="before the lab")
    assert set(made.inputs) == {"accelerator", "dtype", "kernel", "rows", "columns", "overhead", "calls"}
    assert made.outputs["time"].unit == "s" and made.outputs["performance"].unit == FLOP_PER_SECOND.symbol
    assert (made.calculator, made.source, made.note) == ("roofline-explorer", "calculator", "before the lab")


def _recorded(device: str, created: str, scale: str, seconds: float) -> Record:
    def sample(seconds, **point):
        return Sample(point=point, metric="time", unit="s", values=[seconds] * 3, status="ok")

    def ceilings(index):
        return [
            sample(1e-3, case="ceiling-copy", role="ceiling", kernel="copy", bytes_moved=4 * 10**9, index=10 * index),
            sample(2e-6, case="ceiling-overhead", role="ceiling", kernel="negate", index=10 * index + 1),
            sample(4e-5, case="ceiling-matmul-fp32", role="ceiling", kernel="matmul", m=1000, n=1000, k=1000,
                   index=10 * index + 2),
        ]  # fmt: skip

    relu = sample(seconds, case="relu", role="kernel", kernel="fused_chain", elements=10**8, operations=1,
                  bytes_per_element=4, dtype="fp32", inputs="cold", output="preallocated")  # fmt: skip
    environment = Environment(
        device=device, kind="cuda", count=1, memory=143 * 10**9, threads=1, torch="2.13", python="3.11", efflab="0.1"
    )
    return Record(
        id=f"{scale}-{created[:10]}", topic="roofline", created=created, finished=created, environment=environment,
        spec={"scale": scale}, samples=[*ceilings(0), relu, *ceilings(1)],
    )  # fmt: skip


def test_recorded_runs_lie_over_the_roofline(monkeypatch):
    """The newest run of each device, at its measured speed, shown from the start under its own accelerator."""
    from efflab.calculators import roofline as module

    monkeypatch.setattr(module, "recorded", lambda topic: [
        _recorded("NVIDIA H200", "2026-11-20T08:00:00Z", "gpu", 3e-4),
        _recorded("NVIDIA H200", "2026-11-21T08:00:00Z", "gpu", 2e-4),
        _recorded("NVIDIA H200", "2026-11-22T08:00:00Z", "smoke", 1e-6),
        _recorded("Some other device", "2026-11-21T08:00:00Z", "gpu", 2e-4),
    ])  # fmt: skip
    mine, other = module.recorded_runs()
    assert mine.label == "NVIDIA H200, 2026-11-21" and mine.option == ("accelerator", "H200 SXM")
    assert mine.points == [(pytest.approx(1 / 8), pytest.approx(1e8 / 2e-4), "relu")]
    assert other.option is None


@pytest.mark.parametrize("calculator", calculators.every().values(), ids=lambda c: c.name)
def test_sliders_stop_at_sensible_values(calculator):
    for slider in calculator.inputs:
        if isinstance(slider, Slider):
            stops = slider.stops()
            assert stops == sorted(set(stops)) and slider.default in stops
            assert 10 <= len(stops) <= 120
            assert all(calculator.accept(slider.name, s) == s for s in stops)


@pytest.mark.parametrize("calculator", calculators.every().values(), ids=lambda c: c.name)
def test_a_calculator_belongs_to_the_topic_whose_module_declares_it(calculator):
    module = importlib.import_module(f"efflab.calculators.{calculator.topic}")
    assert calculator in vars(module).values()


SLIDERS = [(c.name, i.name) for c in calculators.every().values() for i in c.inputs if isinstance(i, Slider)]


@pytest.mark.parametrize(("name", "field"), SLIDERS, ids=".".join)
@pytest.mark.parametrize("text", ["abc", "7 parsec", "1e21", "3", "weeks", "0.5"])
def test_the_example_of_a_refusal_is_accepted(name, field, text):
    """Whoever follows the hint is not refused again."""
    calculator = calculators.get(name)
    try:
        calculator.accept(field, text)
    except EfflabError as error:
        if "must be" in str(error):  # a quantity, but not one of this field's
            return
        example = re.search(r"(?:such as|as in|like) '?([^']+?)'?\.$", str(error))
        assert example, error
        calculator.accept(field, example[1])


def test_a_hint_has_the_unit_that_its_field_shows():
    for name, field, text, told in [
        ("compute-optimal", "budget_flops", "1e21", "Add one, such as '1e21 FLOP'."),
        ("training-time", "mfu", "abc", "Write it like '0.404'."),
        ("training-time", "deadline", "3 fortnights", "Write it like '90 d'."),
        ("training-time", "deadline", "5", "Add one, such as '5 d'."),
        ("training-memory", "own_memory", "1e21", "Add one, as in '24 GB'."),
    ]:
        with pytest.raises(EfflabError) as error:
            calculators.get(name).accept(field, text)
        assert str(error.value).endswith(told)


def test_sizes_are_read_in_thousands_and_in_powers_of_two():
    accept = calculators.get("kv-cache").accept
    sizes = {"128k": 128000, "16 K": 16000, "128Ki": 131072, "1M": 1000000, "1,5k": None, "0.5Mi": 524288}
    for text, size in sizes.items():
        if size:
            assert accept("context_length", text) == size
        else:
            with pytest.raises(EfflabError, match="comma"):
                accept("context_length", text)
    assert calculators.get("training-time").accept("deadline", "1 year") == 365.25 * 86400


def test_only_a_plain_number_is_written_whole():
    time = Output(scaling_laws.training_time, "time", whole=True)
    plan = calculators.get("training-time")
    with pytest.raises(EfflabError, match="output time: only a plain number is written whole"):
        dataclasses.replace(plan, outputs=[time, *(o for o in plan.outputs if o.name != "time")])
