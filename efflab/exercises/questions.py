"""The question bank: what a question holds, and how bank/<topic>.yml is read and checked.

A bank that does not validate does not load. The error names the file, the question and the field.

Numeric values are computed where they can be, so that a question and the formula it asks about cannot drift
apart. A value is one of

- a quantity as text, "29.2 ms", or a bare number where the unit is a pure number;
- `{formula: roofline.ridge_point, inputs: {...}}`, each input again a value;
- `{arithmetic: "1 / (0.39 + 0.61 / 2)"}`, numbers in base units;
- in a misconception, `{changed: {input: value}}`: the answer's formula with some inputs changed,
  and `times: 0.5` on any of these.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import math
import operator
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from efflab import yamlfile
from efflab.errors import EfflabError, unknown
from efflab.exercises.nearest import MOST, nearest
from efflab.formulas import reading
from efflab.units import NUMBER, UNITS, Unit, parse

FOLDER = Path(__file__).parent / "bank"
NEAR = 0.1  # relative distance of an answer that is told to be close
CLOSE = (
    "Close, within 10%. Keep three digits in every step and round only the result. If your digits hold, look for a "
    "small term left out, or for GB where GiB is meant."
)
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Computed(_Part):
    """A value that is computed rather than typed."""

    formula: str | None = None
    inputs: dict[str, Value] = {}
    changed: dict[str, Value] | None = None
    arithmetic: str | None = None
    times: float = 1.0

    @model_validator(mode="after")
    def _one_form(self) -> Computed:
        forms = [f for f in ("formula", "changed", "arithmetic") if getattr(self, f) is not None]
        if len(forms) > 1 or (not forms and self.times == 1.0):
            raise ValueError("give exactly one of 'formula', 'changed' and 'arithmetic'")
        if self.inputs and self.formula is None:
            raise ValueError("'inputs' needs a 'formula'")
        return self


Value = bool | float | str | Computed


class Option(_Part):
    """One option of a choice. `feedback` says why it is right or wrong."""

    text: Text
    feedback: Text
    right: bool = False


class Misconception(_Part):
    """A wrong value that comes from a known mistake, and what to tell someone who made it."""

    name: Text
    value: Value
    feedback: Text
    tolerance: str | None = None


class _Question(_Part):
    id: str = Field(pattern=r"^[a-z][a-z_]*-(code-|own-)?[1-9][0-9]?$")
    title: Text
    points: int = Field(ge=1, le=10)
    text: Text
    hints: tuple[Text, ...] = Field(min_length=1, max_length=4)

    @property
    def topic(self) -> str:
        """ "roofline" of "roofline-code-1"."""
        return self.id.partition("-")[0]


class Choice(_Question):
    """One right option among two to six."""

    kind: Literal["choice"]
    options: tuple[Option, ...] = Field(min_length=2, max_length=6)
    keep_order: bool = False

    @model_validator(mode="after")
    def _options(self) -> Choice:
        right = sum(o.right for o in self.options)
        if right != 1:
            raise ValueError(f"options: exactly one must be right, got {right}")
        if len({o.text for o in self.options}) < len(self.options):
            raise ValueError("options: two options have the same text")
        return self

    @property
    def ordered(self) -> dict[str, Option]:
        """The options by letter in the order shown, which the bank's order does not tell."""
        shown = list(self.options)
        if not self.keep_order:
            shown.sort(key=lambda o: hashlib.sha512(f"order\0{self.id}\0{o.text}".encode()).digest())
        return dict(zip("abcdef", shown, strict=False))


class Numeric(_Question):
    """A quantity with its unit."""

    kind: Literal["numeric"]
    unit: str
    answer: Value
    printed: str | None = None
    tolerance: str = "3%"  # inputs of two or three digits, rounded on the way, stay within it
    right: Text
    wrong: Text = "Write down each factor with its unit, then compare with the hints."
    misconceptions: tuple[Misconception, ...] = ()

    @field_validator("unit")
    @classmethod
    def _known_unit(cls, symbol: str) -> str:
        if symbol not in UNITS:
            raise ValueError(f"{symbol!r} is not a unit of efflab; known: {', '.join(map(repr, UNITS))}")
        return symbol

    @model_validator(mode="after")
    def _ranges(self) -> Numeric:
        try:
            return self._checked_ranges()
        except EfflabError as error:
            raise ValueError(str(error)) from None

    def _checked_ranges(self) -> Numeric:
        if self.printed is not None:
            low, high = self.bounds
            printed = parse(self.printed, self.unit_type, "printed")
            if not low <= printed <= high:
                raise EfflabError(f"printed: {self.printed!r} is not the computed answer {self.value:.6g} {self.unit}")
        ranges = [("answer", *self.bounds)]
        for i, _ in enumerate(self.misconceptions):
            low, high = self.misconception_bounds(i)
            for name, other_low, other_high in ranges:
                if low <= other_high and other_low <= high:
                    raise EfflabError(
                        f"misconceptions.{i}: its range {low:.6g} to {high:.6g} overlaps with that of {name}, "
                        f"{other_low:.6g} to {other_high:.6g}; a value could mean either"
                    )
            ranges.append((f"misconceptions.{i}", low, high))
        return self

    @property
    def unit_type(self) -> Unit:
        """The unit that an answer is read in."""
        return UNITS[self.unit]

    @property
    def example(self) -> str:
        """The unit that the answer is printed in, "GB" or "%": whoever adds it to a number is not led astray."""
        if self.printed is None:
            return self.unit_type.example()
        return re.sub(r"^[0-9.,]+(e-?[0-9]+)?\s*", "", self.printed)

    @property
    def wanted(self) -> str:
        """What to answer with, for a person: "a number with its unit, such as 3 GB"."""
        if self.example == "%":
            return "a share, such as 25% or 0.25"
        gap = "" if self.unit_type.counted else " "
        return f"a number with its unit, such as 3{gap}{self.example}" if self.unit else "a number"

    @property
    def value(self) -> float:
        """The right answer, base units."""
        return evaluate(self.answer, self.unit_type, "answer")

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest value counted as right, base units."""
        return _bounds(self.value, self.tolerance, self.unit_type, "tolerance")

    @property
    def near_bounds(self) -> tuple[float, float] | None:
        """Least and greatest value that counts as close, base units; None where the tolerance reaches as far.

        Right values and recognised mistakes lie inside too, and go first.
        """
        near = NEAR * abs(self.value)
        low, high = self.value - near, self.value + near
        return (low, high) if low < self.bounds[0] else None

    def misconception_bounds(self, i: int) -> tuple[float, float]:
        """Least and greatest value taken for misconception `i`, base units."""
        item, place = self.misconceptions[i], f"misconceptions.{i}"
        value = evaluate(item.value, self.unit_type, f"{place}.value", self.answer)
        return _bounds(value, item.tolerance or self.tolerance, self.unit_type, f"{place}.tolerance")


class Code(_Question):
    """A function to write. `checker` is a function of checks/<topic>.py, `signature` what it is called with."""

    kind: Literal["code"]
    checker: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    right: Text


class Measurement(_Question):
    """A claim about the learner's own record, checked by a function of checks/<topic>.py."""

    kind: Literal["measurement"]
    checker: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    right: Text


Question = Choice | Numeric | Code | Measurement
_KINDS: dict[str, type[_Question]] = {
    "choice": Choice, "numeric": Numeric, "code": Code, "measurement": Measurement,
}  # fmt: skip


def _bounds(value: float, tolerance: str, unit: Unit, name: str) -> tuple[float, float]:
    """`tolerance` is relative ("1%") or a quantity of the answer's unit ("0.1 ms")."""
    if tolerance.rstrip().endswith("%"):
        share = parse(tolerance, NUMBER, name)
        if not 0 < share <= 0.2:
            raise EfflabError(f"{name}: {tolerance!r} must be above 0% and at most 20%")
        margin = share * abs(value)
    else:
        margin = parse(tolerance, unit, name)
    if not margin > 0:
        raise EfflabError(f"{name}: {tolerance!r} around {value:g} leaves no room; give a quantity such as '0.1 ms'")
    return value - margin, value + margin


def evaluate(value: Value, unit: Unit, name: str, answer: Value | None = None) -> float:
    """A value of the bank in base units.

    Args:
        value: see the module's docstring.
        unit: what it must be in.
        name: the field, for errors.
        answer: the question's answer, for a misconception that changes its inputs.

    Raises:
        EfflabError: unknown formula or input, another unit, or no finite number.
    """
    if not isinstance(value, Computed):
        return parse(value, unit, name)
    if value.arithmetic is not None:
        result = _arithmetic(value.arithmetic, name)
    elif value.formula is not None:
        result = _formula(value.formula, value.inputs, unit, name)
    else:
        if answer is None:
            raise EfflabError(f"{name}: 'changed' and a lone 'times' belong in a misconception")
        if value.changed is None:
            result = evaluate(answer, unit, name)
        else:
            if not isinstance(answer, Computed) or answer.formula is None:
                raise EfflabError(f"{name}: 'changed' needs an answer given by a formula")
            for changed in value.changed:
                if changed not in answer.inputs:
                    raise EfflabError(str(unknown(f"{name}: changed input", changed, answer.inputs)))
            result = _formula(answer.formula, answer.inputs | value.changed, unit, name) * answer.times
    result = float(result) * value.times
    if not math.isfinite(result):
        raise EfflabError(f"{name}: gives {result}, which is not finite")
    return result


def _formula(formula: str, inputs: dict[str, Value], unit: Unit, name: str) -> float:
    function = reading.find(formula)
    read = reading.read(function)
    if read.unit.symbol != unit.symbol:
        raise EfflabError(f"{name}: {formula} gives {read.unit.symbol or 'a pure number'}, not {unit.symbol!r}")
    values: dict[str, Any] = {}
    for parameter, given in inputs.items():
        if parameter in read.options:
            # YAML's 2 arrives as 2.0; the option is a whole number.
            same = (o for o in read.options[parameter] if o == given and isinstance(o, bool) == isinstance(given, bool))
            values[parameter] = next(same, given)
        elif parameter in read.units:
            values[parameter] = evaluate(given, read.units[parameter], f"{name}.inputs.{parameter}")
        else:
            raise EfflabError(str(unknown(f"{name}: input", parameter, [*read.units, *read.options])))
    return float(function(**values))


_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.USub: operator.neg,
}  # fmt: skip


def _arithmetic(text: str, name: str) -> float:
    """A number from + - * / ** and parentheses. Nothing else is evaluated."""

    def run(node: ast.AST) -> float:
        match node:
            case ast.Expression():
                return run(node.body)
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float()):
                return float(node.value)
            case ast.BinOp() if type(node.op) in _OPERATORS:
                return _OPERATORS[type(node.op)](run(node.left), run(node.right))
            case ast.UnaryOp() if type(node.op) in _OPERATORS:
                return _OPERATORS[type(node.op)](run(node.operand))
        raise EfflabError(f"{name}: {text!r} holds more than numbers, + - * / ** and parentheses")

    try:
        return float(run(ast.parse(text, mode="eval")))
    except SyntaxError:
        raise EfflabError(f"{name}: {text!r} is not arithmetic") from None
    except (ZeroDivisionError, OverflowError, TypeError) as error:
        raise EfflabError(f"{name}: {text!r} cannot be computed: {error}") from None


# Reading


def read_bank(path: Path) -> list[Question]:
    """Read and validate one bank file.

    Raises:
        EfflabError: names the file, the question and the field.
    """
    data = yamlfile.read(path)
    if not isinstance(data, dict) or set(data) != {"topic", "questions"} or not isinstance(data["questions"], list):
        raise EfflabError(f"{path.name}: expected two keys, 'topic' and 'questions', and a list in 'questions'.")
    topic = data["topic"]
    if topic != path.stem or not re.fullmatch(r"[a-z][a-z_]*", topic):
        raise EfflabError(f"{path.name}: topic {topic!r} must be the file's name, {path.stem!r}.")
    found: list[Question] = []
    for number, row in enumerate(data["questions"], 1):
        label = row.get("id", f"number {number}") if isinstance(row, dict) else f"number {number}"
        question = _read_question(row, f"{path.name}: question {label}")
        if question.topic != topic:
            raise EfflabError(f"{path.name}: question {label}: id: must start with {topic + '-'!r}.")
        if question.id in {q.id for q in found}:
            raise EfflabError(f"{path.name}: question {label}: id: two questions have it. Give each its own.")
        found.append(question)
    return found


def _read_question(row: Any, label: str) -> Question:
    if not isinstance(row, dict):
        raise EfflabError(f"{label}: expected a mapping of fields, got {type(row).__name__}.")
    if row.get("kind") not in _KINDS:
        raise EfflabError(str(unknown(f"{label}: kind", row.get("kind"), _KINDS)))
    try:
        return _KINDS[row["kind"]].model_validate(row)  # type: ignore[return-value]
    except ValidationError as error:
        problems = {}
        for item in error.errors(include_url=False):
            # Members of the union `Value` are no fields.
            place = [str(p) for p in item["loc"] if p not in ("bool", "float", "str", "Computed")]
            message = item["msg"].removeprefix("Value error, ").rstrip(".")
            problems.setdefault(".".join(place), message)
        said = "; ".join(f"{field}: {m}" if field else m for field, m in list(problems.items())[:3])
        raise EfflabError(f"{label}: {said}.") from None


@cache
def topics() -> tuple[str, ...]:
    """The topics that have a bank."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.yml")))


@cache
def bank(topic: str) -> dict[str, Question]:
    """The questions of a topic by id, in the bank's order.

    Raises:
        EfflabError: no such topic, or its bank does not validate.
    """
    if topic not in topics():
        raise unknown("topic", topic, topics())
    return {q.id: q for q in read_bank(FOLDER / f"{topic}.yml")}


def question(question_id: str) -> Question:
    """The question with this id.

    Raises:
        EfflabError: no such question; names the nearest known ones. Or its topic's bank does not validate.
    """
    if not isinstance(question_id, str):
        raise EfflabError(f"question: expected an id such as 'roofline-1' as text, got {question_id!r}.")
    topic = question_id.partition("-")[0]
    if topic in topics() and question_id in bank(topic):
        return bank(topic)[question_id]
    if question_id in topics():
        first = ", ".join(list(bank(question_id))[:MOST])
        raise EfflabError(
            f"question: {question_id!r} is a topic. Name one of its questions, such as {first}. "
            f"progress({question_id!r}) lists all of them."
        )
    known: list[str] = []
    for name in topics():
        with contextlib.suppress(EfflabError):  # a broken bank is its own topic's error
            known += bank(name)
    raise nearest("question", question_id, known, "'progress' lists all of them.")


def canonical(item: _Question) -> str:
    """Everything in a question as one text that does not depend on how the bank is laid out."""
    return json.dumps(item.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
