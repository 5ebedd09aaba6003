"""The widget's Python half, without a browser."""

from __future__ import annotations

import json

import pytest
import traitlets

from efflab import calculators
from efflab.calculators import bundle
from efflab.errors import EfflabError
from efflab.records import LabBook

NAMES = list(calculators.every())


@pytest.mark.parametrize("name", NAMES)
def test_every_calculator_is_a_widget(name):
    calculator = calculators.get(name)
    widget = calculator.widget()
    assert {n for n in widget.trait_names(sync=True) if n in calculator.table} == set(calculator.table)
    for output, value in calculator.evaluate().values.items():
        if output in calculator.computed:
            assert getattr(widget, output) == value
    assert widget.verdict == calculator.evaluate().verdict
    assert "0x" not in repr(widget) and repr(widget) == repr(calculator.widget())
    assert widget._esm.rstrip().endswith("export default { render };")
    json.dumps(widget.get_state()["_declaration"])


def test_an_input_set_in_python_moves_the_outputs():
    widget = calculators.get("roofline-explorer").widget(m=512)
    seen = []
    widget.observe(lambda change: seen.append(change.new), names="time")
    before = widget.time
    assert widget.flops == 2 * 512 * 4096 * 4096
    widget.m = "1,024"
    assert widget.m == 1024
    assert widget.time == pytest.approx(2 * before) and seen == [widget.time]
    widget.overhead = "10 µs"
    assert widget.overhead == pytest.approx(1e-5)
    assert widget.result().verdict == widget.verdict


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("m", 0, "m must be between"), ("m", "4 GB", "unit 'GB'"), ("kernel", "matmull", "Did you mean 'matmul'"),
     ("overhead", "3", "has no unit"), ("accelerator", None, "is not known")],
)  # fmt: skip
def test_a_bad_value_is_refused_and_the_old_one_kept(name, value, told):
    widget = calculators.get("roofline-explorer").widget()
    before = widget.state()
    with pytest.raises(traitlets.TraitError) as error:
        setattr(widget, name, value)
    assert told in str(error.value)
    assert widget.state() == before


def test_outputs_cannot_be_set():
    with pytest.raises(traitlets.TraitError):
        calculators.get("fusion").widget().fusion_speedup = 3


def test_a_bad_first_state_is_refused():
    with pytest.raises(EfflabError, match="Did you mean 'kernel'"):
        calculators.get("roofline-explorer").widget(kernl="matmul")


def test_two_widgets_link_by_traitlets():
    one, two = calculators.get("fusion").widget(), calculators.get("roofline-explorer").widget()
    traitlets.link((one, "accelerator"), (two, "accelerator"))
    traitlets.dlink((one, "elements"), (two, "elements"))
    one.accelerator = "H100 SXM"
    assert two.accelerator == "H100 SXM"
    assert two.ridge_point == pytest.approx(989.4 / 3.35)
    two.accelerator = "L4"
    assert one.accelerator == "L4"


def test_a_dtype_without_a_peak_leaves_the_widget_usable():
    widget = calculators.get("roofline-explorer").widget(accelerator="A100 SXM 80GB", dtype="fp8")
    assert widget.time is None and widget.verdict.startswith("A100 SXM 80GB has no dense fp8 peak")
    widget.dtype = "bf16"
    assert widget.time is not None


def test_a_prediction_asked_for_by_the_browser_is_in_the_lab_book(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFLAB_LABBOOK", str(tmp_path / "book"))
    widget = calculators.get("overhead").widget(size=2048)
    answers = []
    monkeypatch.setattr(widget, "send", answers.append)
    widget._handle_custom_msg({"kind": "save"}, [])
    (kept,) = LabBook().predictions()
    assert kept.inputs["size"] == 2048 and kept.outputs["time"].value == widget.time
    assert "Saved in your lab book" in answers[0]["saved"]
    widget._handle_custom_msg({"kind": "something else"}, [])
    widget._handle_custom_msg("nonsense", [])
    assert len(answers) == 1


def test_a_prediction_that_cannot_be_saved_is_said(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("EFFLAB_LABBOOK", str(blocked / "book"))
    widget = calculators.get("overhead").widget()
    answers = []
    monkeypatch.setattr(widget, "send", answers.append)
    widget._handle_custom_msg({"kind": "save"}, [])
    assert answers[0]["error"].startswith("Not saved. ")


def test_the_module_holds_this_calculators_formulas_only():
    module = bundle.module(calculators.get("ridge-point"))
    assert "roofline.ridge_point" in module and "softmax" not in module
