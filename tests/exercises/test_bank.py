"""The bank: right values from first principles, every option and every mistake answered, broken files refused."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from efflab import catalog
from efflab.catalog import accelerator
from efflab.errors import EfflabError
from efflab.exercises import check, progress, questions
from efflab.exercises.checks import verify
from efflab.exercises.questions import CLOSE, Choice, Numeric
from efflab.formulas import reading, transformer
from efflab.units import show

BANK = {name: item for topic in questions.topics() for name, item in questions.bank(topic).items()}
NUMERIC = [q for q in BANK.values() if isinstance(q, Numeric)]
CHOICE = [q for q in BANK.values() if isinstance(q, Choice)]

# What a topic's bank must hold at least. A chapter teaches by answering, so a thin bank is a lack.
FEWEST = {"for the page": 8, "choice or numeric": 10, "code": 5, "measurement": 1}
TOPICS = questions.topics()
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def by_hand(topic: str) -> ModuleType:
    """tests/exercises/by_hand/<topic>.py: ANSWERS by id and MISTAKES by (id, name), computed without the library."""
    path = Path(__file__).parent / "by_hand" / f"{topic}.py"
    assert path.exists(), f"{topic}: write its answers and mistakes into {path.name} of tests/exercises/by_hand."
    spec = importlib.util.spec_from_file_location(f"by_hand_{topic}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BY_HAND = {name: value for topic in TOPICS for name, value in by_hand(topic).ANSWERS.items()}
MISTAKES = {name: value for topic in TOPICS for name, value in by_hand(topic).MISTAKES.items()}


def written(value: float, question: Numeric) -> str:
    """The value as a learner would type it: in base units, or in the unit that people read instead."""
    symbol, size = question.unit_type.shown or (question.unit, 1.0)
    if question.example == "%":
        return f"{100 * value:.9g}%"
    return f"{value / size:.9g} {symbol}".strip()


def share(tolerance: str) -> float:
    """A relative tolerance as a fraction."""
    assert tolerance.endswith("%"), "every question so far has a relative tolerance"
    return float(tolerance.rstrip("%")) / 100


@pytest.mark.parametrize("topic", TOPICS)
def test_there_are_enough_of_each_kind(topic: str):
    bank = questions.bank(topic)
    kinds = [q.kind for q in bank.values()]
    pages = [q for q in bank if re.fullmatch(rf"{topic}-\d+", q)]
    there = {
        "for the page": len(pages),
        "choice or numeric": kinds.count("choice") + kinds.count("numeric"),
        "code": kinds.count("code"),
        "measurement": kinds.count("measurement"),
    }
    for what, fewest in FEWEST.items():
        assert there[what] >= fewest, f"{topic}.yml: {there[what]} questions {what}; FEWEST asks for {fewest}"
    for prefix in (f"{topic}-", f"{topic}-code-", f"{topic}-own-"):
        numbers = [int(m[1]) for q in bank if (m := re.fullmatch(rf"{prefix}(\d+)", q))]
        assert numbers == list(range(1, len(numbers) + 1)), f"{topic}.yml: {prefix}1, 2, 3 ... have a gap: {numbers}"


@pytest.mark.parametrize("topic", TOPICS)
def test_every_checker_exists(topic: str):
    verify(questions.bank(topic).values())


def test_a_checker_that_does_not_exist_is_named_with_its_question():
    item = questions.question("roofline-code-3").model_copy(update={"checker": "chain_bites"})
    with pytest.raises(
        EfflabError, match=r"roofline\.yml: question roofline-code-3: checker: .*no checker 'chain_bites'"
    ):
        verify([item])
    with pytest.raises(EfflabError, match=r"question nowhere-code-1: checker: there is no module checks/nowhere\.py"):
        verify([item.model_copy(update={"id": "nowhere-code-1"})])


def test_every_number_and_every_mistake_is_recomputed_here():
    assert {q.id for q in NUMERIC} == set(BY_HAND)
    assert {(q.id, m.name) for q in NUMERIC for m in q.misconceptions} == set(MISTAKES)


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_the_right_value_is_right(question: Numeric):
    right = BY_HAND[question.id]
    assert question.value == pytest.approx(right, rel=1e-9)
    result = check(question.id, written(right, question))
    assert result.right and result.points == question.points and result.feedback == question.right
    assert question.printed and check(question.id, question.printed)
    # As the calculators show it, with three digits.
    assert check(question.id, show(right, question.unit_type))


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=[f"{q}: {m}" for q, m in MISTAKES])
def test_a_mistake_is_recognised(name: str, mistake: str):
    question = BANK[name]
    result = check(name, written(MISTAKES[name, mistake], question))
    assert result.outcome == "wrong" and result.points == 0
    assert result.misconception == mistake
    assert result.feedback == next(m.feedback for m in question.misconceptions if m.name == mistake)


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_another_value_gets_the_general_feedback_and_no_answer(question: Numeric):
    result = check(question.id, written(question.value * 7.7, question))
    assert result.outcome == "wrong" and result.misconception is None and result.feedback == question.wrong
    for digits in (2, 3, 4, 5):
        assert f"{question.value:.{digits}g}" not in question.wrong


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_just_inside_is_right_and_just_outside_is_wrong(question: Numeric):
    margin, right = share(question.tolerance), BY_HAND[question.id]
    for side in (-1, 1):
        inside, outside = right * (1 + side * margin * 0.99), right * (1 + side * margin * 1.01)
        assert check(question.id, written(inside, question))
        assert not check(question.id, written(outside, question))


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_reasonable_rounding_is_right(question: Numeric):
    """Two digits are enough where they are within 3%, and every mistake is farther away than that.

    A question that asks for an exact number says so in its text.
    """
    right, margin = BY_HAND[question.id], share(question.tolerance)
    if margin < 0.03:
        assert re.search(r"\b(exact|exactly)\b", question.text), f"{question.id}: a narrow tolerance without a word"
    for value in (right * (1 + 0.93 * margin), right * (1 - 0.93 * margin)):
        assert check(question.id, written(value, question)), value
    for (name, mistake), value in MISTAKES.items():
        if name == question.id:
            assert abs(value / right - 1) > 1.3 * margin, mistake


def test_an_exact_number_is_asked_for_exactly():
    for answer in ("65504", "65,504", 65504):
        assert check("precision-2", answer)
    for answer in ("65500", "65510", "65503", "65505", "65.5e3"):
        assert check("precision-2", answer).outcome == "wrong"
    assert "rounded" in check("precision-2", "65500").feedback


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_the_feedback_of_a_mistake_does_not_tell_the_answer(question: Numeric):
    shown = question.printed.split()[0].rstrip("%")
    for misconception in question.misconceptions:
        if shown in str(misconception.value):
            continue  # the learner wrote this number, with another unit
        assert not re.search(rf"(?<![\d.,]){re.escape(shown)}(?![\d]|[.,]\d)", misconception.feedback), (
            f"{misconception.name}: {shown}"
        )


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_the_suggested_unit_leads_to_the_right_answer(question: Numeric):
    number = re.match(r"[0-9.,]+(e-?[0-9]+)?", question.printed)[0]
    assert check(question.id, f"{number} {question.example}")
    said = check(question.id, number)
    if "" not in question.unit_type.accepted():
        assert said.outcome == "not counted" and re.search(rf"such as .*{question.example}[.']", said.feedback)
        assert " or " not in said.feedback
    assert question.example in question.wanted


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_a_near_miss_is_called_one(question: Numeric):
    right = BY_HAND[question.id]
    for value in (right * 0.92, right * 1.09):
        result = check(question.id, written(value, question))
        mistakes = [v for (name, _), v in MISTAKES.items() if name == question.id and abs(value / v - 1) < 0.05]
        assert result.outcome == "wrong" and (result.feedback == CLOSE or mistakes)
    for value in (right * 0.89, right * 1.11, -right):
        assert check(question.id, written(value, question)).feedback != CLOSE
    assert "Not" not in question.wrong  # the verdict before it says so already


@pytest.mark.parametrize("question", CHOICE, ids=lambda q: q.id)
def test_each_option_gets_its_own_feedback(question: Choice):
    for letter, option in question.ordered.items():
        for answer in (letter, letter.upper(), f"({letter})", option.text, f" {option.text.upper()} "):
            result = check(question.id, answer)
            assert result.outcome == ("right" if option.right else "wrong"), answer
            assert result.feedback == option.feedback
    assert sum(o.right for o in question.ordered.values()) == 1
    assert {o.feedback for o in question.options} == {o.feedback for o in question.ordered.values()}
    assert len({o.feedback for o in question.options}) == len(question.options)


def test_the_place_of_an_option_does_not_tell():
    in_bank = [next(i for i, o in enumerate(q.options) if o.right) for q in CHOICE]
    shown = [next(i for i, o in enumerate(q.ordered.values()) if o.right) for q in CHOICE]
    assert shown != in_bank
    assert len(set(shown)) >= 3


def test_the_right_option_is_not_always_the_longest():
    longest = [max(q.options, key=lambda o: len(o.text)).right for q in CHOICE]
    assert sum(longest) <= len(longest) / 2


@pytest.mark.parametrize("question", BANK.values(), ids=lambda q: q.id)
def test_hints_and_texts_are_plain(question):
    assert question.hints
    texts = [question.title, question.text, *question.hints]
    texts += [question.right] if not isinstance(question, Choice) else [o.feedback for o in question.options]
    for text in texts:
        assert not re.search(r"[<>]\w|TODO|\bsimply\b|\bjust\b|—", text), text


def test_constants_are_those_of_the_catalog():
    h100, h200, a100 = (accelerator(n) for n in ("H100 SXM", "H200 SXM", "A100 SXM 40GB"))
    for device, dtype, peak in (
        (h100, "bf16", 989.4e12), (h200, "bf16", 989.4e12), (h100, "fp32", 66.9e12), (h200, "fp32", 66.9e12),
        (a100, "fp32", 19.5e12), (a100, "bf16", 312e12),
    ):  # fmt: skip
        assert device.peak(dtype) == pytest.approx(peak)
    assert [h100.memory_bandwidth, h200.memory_bandwidth] == pytest.approx([3.35e12, 4.8e12])
    assert [h100.memory, h200.memory] == pytest.approx([80e9, 141e9])
    assert h200.link_bandwidth == pytest.approx(450e9)
    assert h100.peak_sparse["bf16"] == pytest.approx(1979e12, rel=1e-3)


def inputs_of(name: str) -> dict:
    """The inputs of a question's answer."""
    return BANK[name].answer.inputs


@pytest.mark.parametrize(
    ("question", "model", "names"),
    [
        ("scaling_laws-3", "Llama 3.1 8B", "hidden_size intermediate_size query_heads kv_heads head_dim"),
        ("precision-19", "GPT-3 175B", "hidden_size query_heads"),
        ("precision-20", "GPT-3 175B", "hidden_size query_heads"),
        ("precision-21", "Llama 3.1 405B", "layers kv_heads head_dim"),
    ],
)
def test_shapes_are_those_of_the_catalog(question: str, model: str, names: str):
    """The architecture in a question is the published one, and stands in its text."""
    shape, said = catalog.model(model).shape, BANK[question].text.replace(",", "")
    for name in names.split():
        assert inputs_of(question)[name] == getattr(shape, name), name
        assert str(getattr(shape, name)) in said, name


def test_models_and_laws_are_those_of_the_catalog():
    llama = catalog.model("Llama 3.1 8B")
    cache = inputs_of("precision-22")["bytes_per_sequence"].inputs
    assert all(cache[n] == getattr(llama.shape, n) for n in ("layers", "kv_heads", "head_dim"))
    assert llama.parameters == pytest.approx(8.03e9, rel=1e-3) and llama.shape.query_heads == 32
    older = catalog.model("LLaMA 13B")
    assert older.parameters == pytest.approx(13.0e9, rel=2e-3) and older.tokens == 1e12
    assert catalog.model("Llama 3.1 405B").parameters == pytest.approx(405e9, rel=3e-3)
    assert catalog.model("GPT-3 175B").parameters == pytest.approx(175e9, rel=3e-3)
    small = catalog.model("GPT-2 124M")
    assert (small.shape.vocabulary, small.shape.hidden_size, small.shape.tied_embeddings) == (50257, 768, True)
    assert transformer.parameter_count(**small.architecture()) == pytest.approx(124.4e6, rel=1e-3)
    rounded, unrounded = catalog.laws()["Hoffmann 2022, rounded"], catalog.laws()["Hoffmann 2022, unrounded"]
    besiroglu = catalog.laws()["Besiroglu 2024"]
    constants = ("parameter_coefficient", "parameter_exponent", "token_coefficient", "token_exponent")
    asked = BANK["scaling_laws-15"]
    assert [asked.answer.inputs[c] for c in constants] == [getattr(rounded, c) for c in constants]
    changed = asked.misconceptions[0].value.changed
    assert [changed[c] for c in changed] == [getattr(unrounded, c) for c in changed]
    assert [inputs_of("scaling_laws-20")[c] for c in constants] == [getattr(besiroglu, c) for c in constants]


def test_what_the_texts_say_beside_the_answers():
    """Numbers in texts and feedback that no answer holds, each computed again."""
    laws = catalog.laws()

    def loss(law, n, d):
        return (
            law.irreducible_loss
            + law.parameter_coefficient / n**law.parameter_exponent
            + (law.token_coefficient / d**law.token_exponent)
        )

    besiroglu, rounded = laws["Besiroglu 2024"], laws["Hoffmann 2022, rounded"]
    # 19: the two models have one loss, and the smaller one takes 30% more to train.
    assert loss(besiroglu, 35e9, 3.65e12) == pytest.approx(loss(besiroglu, 70e9, 1.4e12), abs=2e-4)
    assert pytest.approx(1.30, abs=0.005) == 35 * 3.65 / (70 * 1.4)
    # 20: the loss of Chinchilla, and its share.
    assert loss(besiroglu, 70e9, 1.4e12) == pytest.approx(1.974, abs=5e-4)
    assert BANK["scaling_laws-20"].value / 1.974 == pytest.approx(0.02, abs=0.003)
    # 12: what twice of both takes off.
    assert loss(rounded, 70e9, 1.4e12) == pytest.approx(1.94, abs=0.005)
    assert loss(rounded, 70e9, 1.4e12) - loss(rounded, 140e9, 2.8e12) == pytest.approx(0.05, abs=0.005)
    # 16: the data's term by the rounded exponent.
    assert pytest.approx(1.15, abs=0.006) == 1e12 ** (0.2849083 - 0.28)
    # 17: tokens per parameter at Gopher's budget, by law.
    ratios = []
    for law in laws.values():
        a, b = law.parameter_exponent, law.token_exponent
        g = (a * law.parameter_coefficient / (b * law.token_coefficient)) ** (1 / (a + b))
        n = g * (5.76e23 / 6) ** (b / (a + b))
        ratios.append(round(5.76e23 / 6 / n**2))
    assert sorted(ratios) == [18, 59, 93]
    # 9: days on 16,384 devices. 10: hours.
    assert BANK["scaling_laws-9"].value / 16384 / 86400 == pytest.approx(66, abs=0.5)
    assert BANK["scaling_laws-10"].value / 2.5 == pytest.approx(413e3, rel=1e-3)
    # precision 13: FP32 to FP8. 19: all layers, against the weights. 20: everything recomputed.
    h200 = accelerator("H200 SXM")
    assert h200.peak("fp8") / h200.peak("fp32") == pytest.approx(30, abs=0.5)
    assert h200.peak("tf32") == pytest.approx(494.7e12) and h200.peak_sparse["fp8"] == pytest.approx(3958e12, rel=1e-3)
    assert BANK["precision-19"].value * 96 == pytest.approx(275e9, rel=3e-3)
    assert pytest.approx(0.98, abs=0.005) == 1 - 2 / 114
    # precision 21: the blog's table.
    assert 2 * BANK["precision-21"].value / 2**30 == pytest.approx(123.05, abs=0.005)


def test_what_the_texts_on_several_devices_say_beside_the_answers():
    h100, h200 = accelerator("H100 SXM"), accelerator("H200 SXM")
    assert h100.link_bandwidth == h200.link_bandwidth == pytest.approx(900e9 / 2)
    # 4: one message for each tensor, one for all. GPT-2's smallest model has 148 tensors: 12 in each of 12 layers.
    assert pytest.approx(0.277, abs=5e-4) == 0.07 + 148 * 14 * 100e-6
    assert pytest.approx(0.071, abs=5e-4) == 0.07 + 14 * 100e-6
    assert 32 * BANK["ddp-9"].value == pytest.approx(26, abs=0.5)
    # 15: S and |G|².
    assert pytest.approx(146, abs=0.5) == 4 / (1 / 32 - 1 / 256)
    assert pytest.approx(1.43, abs=0.005) == 6 - 4 / (1 / 32 - 1 / 256) / 32
    # 16: stages 0, 1 and 3.
    assert [7 * 16, 7 * (4 + 12 / 8), 7 * 16 / 8] == [112, 38.5, 14]
    # 18 and 20: share of the whole time; memory of the interleaved schedule.
    assert pytest.approx(0.18, abs=0.005) == 7 / 39 and pytest.approx(1.44, abs=0.005) == 11.5 / 8
    # 21: bytes, and their time over NVLink.
    assert BANK["ddp-21"].value * 50e9 == pytest.approx(37.6e9, abs=5e7)
    assert BANK["ddp-21"].value * 50 / 450 == pytest.approx(0.084, abs=5e-4)
    # 22: Llama 3 405B's layout.
    assert 8 * 16 * 128 == 16384
    # 23: hours between interruptions; what checkpoints cost, and what is done again.
    assert pytest.approx(3.09, abs=0.005) == 54 * 24 / 419
    for cost in (60 / BANK["ddp-23"].value, BANK["ddp-23"].value / 2 / (54 * 86400 / 419)):
        assert cost == pytest.approx(0.05, abs=0.005)


def test_rates_stand_in_the_text():
    """A peak, a bandwidth or an overhead that the answer is computed from must be given to the reader."""
    for question in NUMERIC:
        stack = [question.answer]
        while stack:
            value = stack.pop()
            if isinstance(value, questions.Computed):
                options = reading.read(reading.find(value.formula)).options if value.formula else {}
                stack += [given for name, given in value.inputs.items() if name not in options]
            elif isinstance(value, str) and value.endswith("s") and value != "0 s" and value[0].isdigit():
                number = value.split()[0]
                said = re.sub(r" × 10([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda m: f"e{m[1].translate(SUPERSCRIPTS)}", question.text)
                assert number in said, f"{question.id}: {value}"


GOOD = {
    "id": "t-1", "kind": "numeric", "title": "Title", "points": 1, "text": "Text", "hints": ["A hint."],
    "unit": "s", "answer": "2 s", "tolerance": "1%", "right": "Right.",
    "misconceptions": [{"name": "half", "value": "1 s", "feedback": "Half."}],
}  # fmt: skip
CHOOSE = {
    "id": "t-2", "kind": "choice", "title": "Title", "points": 1, "text": "Text", "hints": ["A hint."],
    "options": [{"text": "One", "feedback": "Yes.", "right": True}, {"text": "Two", "feedback": "No."}],
}  # fmt: skip


def save(folder: Path, *rows: dict, topic: str = "t") -> Path:
    path = folder / "t.yml"
    path.write_text(yaml.safe_dump({"topic": topic, "questions": list(rows)}), encoding="utf-8")
    return path


def test_a_good_file_loads(tmp_path: Path):
    assert [q.id for q in questions.read_bank(save(tmp_path, GOOD, CHOOSE))] == ["t-1", "t-2"]


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"unit": "parsec"}, "unit", "not a unit of efflab"),
        ({"answer": "2 B"}, "answer", "not a unit of time"),
        ({"answer": "2"}, "answer", "no unit"),
        (
            {"answer": {"formula": "roofline.ridge_pint", "inputs": {}}},
            "formula",
            "Did you mean 'roofline.ridge_point'",
        ),
        ({"answer": {"formula": "roofline.ridge_point", "inputs": {}}}, "answer", "gives FLOP/B"),
        ({"answer": {"formula": "roofline.memory_time", "inputs": {"bytes": "3 B"}}}, "answer", "'bytes' is not known"),
        (
            {"answer": {"formula": "roofline.memory_time", "inputs": {"bytes_moved": "3 B"}}},
            "",
            "'memory_bandwidth' is missing",
        ),
        ({"answer": {"arithmetic": "__import__('os')"}}, "answer", "more than numbers"),
        ({"answer": {"arithmetic": "1 / 0"}}, "answer", "division by zero"),
        ({"answer": {"arithmetic": "9 ** 9 ** 9"}}, "answer", "cannot be computed"),
        ({"answer": {"changed": {"a": 1}}}, "answer", "belong in a misconception"),
        ({"answer": {"arithmetic": "1", "formula": "x.y"}}, "answer", "exactly one"),
        ({"printed": "3 s"}, "printed", "not the computed answer 2 s"),
        ({"tolerance": "90%"}, "tolerance", "at most 20%"),
        ({"tolerance": "0%"}, "tolerance", "above 0%"),
        ({"answer": "0 s"}, "tolerance", "leaves no room"),
        (
            {"misconceptions": [{"name": "same", "value": "2.01 s", "feedback": "Same."}]},
            "misconceptions.0",
            "overlaps with that of answer",
        ),
        ({"misconceptions": [{"name": "far", "value": "5 s"}]}, "misconceptions.0.feedback", "required"),
        ({"points": 0}, "points", "greater than or equal to 1"),
        ({"hints": []}, "hints", "at least 1"),
        ({"hint": "x"}, "hint", "not permitted"),
        ({"id": "other-1"}, "id", "must start with 't-'"),
        ({"id": "t-01"}, "id", "pattern"),
        ({"kind": "numerical"}, "kind", "Did you mean 'numeric'"),
        ({"title": None}, "title", "valid string"),
    ],
    ids=str,
)
def test_a_wrong_question_is_refused_with_its_file_id_and_field(tmp_path, change, field, said):
    with pytest.raises(EfflabError) as caught:
        questions.read_bank(save(tmp_path, {**GOOD, **change}))
    message = str(caught.value)
    assert message.startswith("t.yml: question "), message
    assert str({**GOOD, **change}["id"]) in message and field in message and said in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([{"text": "One", "feedback": "Yes."}, {"text": "Two", "feedback": "No."}], "exactly one must be right, got 0"),
        ([{"text": t, "feedback": "Yes.", "right": True} for t in ("One", "Two")], "exactly one must be right, got 2"),
        ([{"text": "One", "feedback": f"{r}es.", "right": r} for r in (True, False)], "the same text"),
        ([{"text": "One", "feedback": "Yes.", "right": True}], "at least 2"),
        ([{"text": "One", "right": True}, {"text": "Two", "feedback": "No."}], "options.0.feedback"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(tmp_path, options, said):
    with pytest.raises(EfflabError, match=r"^t\.yml: question t-2: ") as caught:
        questions.read_bank(save(tmp_path, {**CHOOSE, "options": options}))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected two keys"),
        ("- a\n- b\n", "expected two keys"),
        ("topic: t\nquestions: {}\n", "expected two keys"),
        ("topic: other\nquestions: []\n", "topic 'other' must be the file's name, 't'"),
        ("topic: t\nquestions:\n- [1, 2]\n", "expected a mapping"),
        ("topic: t\nquestions:\n- id: 'x\n", "not valid YAML"),
        ("topic: t\ntopic: t\nquestions: []\n", "line 2: not valid YAML: the key 'topic' appears twice"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, said):
    path = tmp_path / "t.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EfflabError) as caught:
        questions.read_bank(path)
    assert str(caught.value).startswith("t.yml") and said in str(caught.value)


def test_two_questions_with_one_id_are_refused(tmp_path):
    with pytest.raises(EfflabError, match=r"^t\.yml: question t-1: id: two questions have it"):
        questions.read_bank(save(tmp_path, GOOD, GOOD))


def test_a_broken_bank_breaks_its_own_topic_only(tmp_path, monkeypatch):
    (tmp_path / "broken.yml").write_text("topic: broken\nquestions: {}\n", encoding="utf-8")
    good = yaml.safe_dump({"topic": "good", "questions": [GOOD | {"id": "good-1"}]})
    (tmp_path / "good.yml").write_text(good, encoding="utf-8")
    monkeypatch.setattr(questions, "FOLDER", tmp_path)
    questions.topics.cache_clear()
    questions.bank.cache_clear()
    try:
        assert questions.question("good-1").title == "Title"
        with pytest.raises(EfflabError, match=r"question: 'good-2' is not known\. Did you mean 'good-1'"):
            questions.question("good-2")
        with pytest.raises(EfflabError, match=r"^broken\.yml: "):
            questions.question("broken-1")
        shown = repr(progress)
        assert "good: 0 of 1 points" in shown and "broken: cannot be shown: broken.yml" in shown
    finally:
        questions.topics.cache_clear()
        questions.bank.cache_clear()


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(EfflabError, match=r"^t\.yml: cannot be read"):
        questions.read_bank(tmp_path / "t.yml")
