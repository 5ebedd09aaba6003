"""The checks of a declaration, made when it is: a mistake shows at import and not in a reader's browser."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from efflab.calculators.parts import (
    PLACEHOLDER,
    RELATIONS,
    Choice,
    NumberField,
    Option,
    Output,
    Ratio,
    Slider,
    Sum,
    Value,
    read,
)
from efflab.errors import EfflabError, unknown
from efflab.units import REAL, Unit, parse

if TYPE_CHECKING:
    from efflab.calculators.calculator import Calculator

NAME = re.compile(r"[a-z][a-z0-9_]*")


def words(name: str) -> str:
    """A name as a label: "memory_bandwidth" becomes "Memory bandwidth"."""
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


class Declaration:
    """The checks of a declaration, and the units that follow from it."""

    def __init__(self, calculator: Calculator) -> None:
        self.calculator = calculator

    def fail(self, message: str) -> EfflabError:
        return EfflabError(f"calculator {self.calculator.name}: {message}")

    def check(self) -> None:
        calculator = self.calculator
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", calculator.name):
            raise EfflabError(f"calculator {calculator.name!r}: write its name in lower case, with hyphens.")
        self._name_outputs()
        self._check_names()
        for given in calculator.inputs:
            check = {Choice: self._check_choice, NumberField: self._check_field}.get(type(given), self._check_slider)
            check(given)
        self._collect_units()
        for given in calculator.inputs:
            if isinstance(given, Slider | NumberField):
                self._check_input_unit(given)
        self._collect_sums()
        self._check_verdict()
        self._check_curve()
        self._check_stack()
        self._check_compare()
        self._check_bits()
        self._check_wiring()
        self._check_spoken()
        self._check_modules()

    def _name_outputs(self) -> None:
        outputs = []
        for output in self.calculator.outputs:
            if getattr(output, "is_formula", False):
                output = Output(output)
            if not isinstance(output, Output | Ratio | Sum | Value):
                raise self.fail(f"outputs: {output!r} is neither a formula nor an Output, a Ratio, a Sum or a Value.")
            if isinstance(output, Output) and not getattr(output.formula, "is_formula", False):
                raise self.fail(f"outputs: {output.formula!r} is not a formula. Decorate it with @formula.")
            name = output.name or output.formula.__name__  # type: ignore[union-attr]
            outputs.append(dataclasses.replace(output, name=name, label=output.label or words(name)))
        inputs = [dataclasses.replace(i, label=i.label or words(i.name)) for i in self.calculator.inputs]
        object.__setattr__(self.calculator, "outputs", tuple(outputs))
        object.__setattr__(self.calculator, "inputs", tuple(inputs))

    def _check_names(self) -> None:
        for what, items in (("inputs", self.calculator.inputs), ("outputs", self.calculator.outputs)):
            names = [i.name for i in items]
            for name in names:
                if not NAME.fullmatch(name):
                    raise self.fail(f"{what}: {name!r} is not a lower-case Python name.")
                if names.count(name) > 1:
                    raise self.fail(f"{what}: {name!r} is declared twice.")
        for name in (o.name for o in self.calculator.outputs):
            if name in self.calculator.table:
                raise self.fail(f"{name!r} is both an input and an output. Rename one.")

    def _check_modules(self) -> None:
        """The Python that a reader copies imports modules of formulas; no value may take their names."""
        modules = {name.partition(".")[0] for name in self.calculator.readings}
        for name in sorted(self._known() & modules):
            raise self.fail(f"{name!r} is a value here and a module of formulas. Rename the value.")

    def _check_slider(self, slider: Slider) -> None:
        label = f"slider {slider.name}"
        numbers = {"low": slider.low, "high": slider.high, "default": slider.default}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise self.fail(f"{label}: {name} must be a finite number, got {value!r}.")
            if slider.integer and value != round(value):
                raise self.fail(f"{label}: {name} must be a whole number, got {value!r}.")
        if not slider.low < slider.high:
            raise self.fail(f"{label}: low ({slider.low}) must be less than high ({slider.high}).")
        if slider.scale not in ("linear", "log", "log2"):
            raise self.fail(f"{label}: scale must be 'linear', 'log' or 'log2', got {slider.scale!r}.")
        if slider.scale != "linear" and slider.low <= 0:
            raise self.fail(f"{label}: a {slider.scale} scale needs low > 0. Use zero=True to allow zero as well.")
        if not (slider.low <= slider.default <= slider.high or (slider.zero and slider.default == 0)):
            raise self.fail(
                f"{label}: the default {slider.default} is outside {slider.low} to {slider.high}. "
                "Change the default or the range."
            )

    def _check_field(self, field: NumberField) -> None:
        if not isinstance(field.default, str):
            raise self.fail(f"number field {field.name}: default must be text, as it is typed, got {field.default!r}.")
        try:
            parse(field.default, REAL, "default")
        except EfflabError as error:
            raise self.fail(f"number field {field.name}: {error}") from None

    def _check_choice(self, choice: Choice) -> None:
        label = f"choice {choice.name}"
        if len(choice.table) != len(choice.options) or not choice.options:
            raise self.fail(f"{label}: it needs options, each with a name of its own.")
        if choice.default not in choice.table:
            raise self.fail(str(unknown(f"{label}: default", choice.default, choice.table)))
        for option in choice.table.values():
            for name, formula in option.formulas.items():
                if not getattr(formula, "is_formula", False):
                    raise self.fail(f"{label}: option {option.name!r}: {name} is not a formula.")
                if name in self.calculator.computed:
                    raise self.fail(f"{label}: option {option.name!r} computes {name!r}, which is also an output.")
            for name in (*option.sets, *option.takes):
                if name in self.calculator.computed:
                    raise self.fail(f"{label}: option {option.name!r} sets {name!r}, which is also an output.")
            for name, source in option.takes.items():
                if source not in self._known() or isinstance(self.calculator.table.get(source), Choice):
                    raise self.fail(
                        f"{label}: option {option.name!r} takes {name!r} from {source!r}, "
                        "which is neither a slider nor a computed value."
                    )
        others = [c for c in self.calculator.inputs if isinstance(c, Choice)]
        if choice.only_found and not any(choice.name in other.by.values() for other in others):
            raise self.fail(f"{label}: only_found is set, but no choice looks anything up by it. Leave it out.")
        for name, by in choice.by.items():
            other = self.calculator.table.get(by)
            if not isinstance(other, Choice):
                raise self.fail(f"{label}: by[{name!r}] is {by!r}, which is not a choice of this calculator.")
            if not choice.missing.get(name):
                raise self.fail(f"{label}: it needs missing[{name!r}], the sentence for a look-up that finds nothing.")
            allowed = (choice.name, by, "has", "nearest")
            for used in PLACEHOLDER.findall(choice.missing[name]):
                if used not in allowed:
                    raise self.fail(str(unknown(f"{label}: missing: placeholder", used, allowed)))

    def _collect_units(self) -> None:
        """A name has the unit of the formulas that make it and take it, and they must agree."""
        calculator, units = self.calculator, self.calculator.units

        def note(name: str, unit: Unit, where: str) -> None:
            before = units.setdefault(name, unit)
            if before.symbol != unit.symbol:
                raise self.fail(
                    f"{name!r} is {before.symbol or 'a number'} and, in {where}, {unit.symbol or 'a number'}."
                )
            if isinstance(calculator.table.get(name), NumberField) and not unit.signed:
                raise self.fail(f"number field {name}: {where} does not take every real number. Use a Slider.")
            if unit.positive:
                units[name] = unit

        for choice in calculator.inputs:
            for option in choice.table.values() if isinstance(choice, Choice) else ():
                for name, formula in option.formulas.items():
                    says = read(formula)
                    note(name, says.unit, says.name)
                    for parameter, unit in says.units.items():
                        note(parameter, unit, says.name)
        for output in calculator.outputs:
            if isinstance(output, Ratio):
                units[output.name] = output.unit
            if not isinstance(output, Output):
                continue
            says = read(output.formula)
            note(output.name, says.unit, says.name)
            for parameter in output.given:
                if parameter not in says.where:
                    raise self.fail(str(unknown(f"output {output.name}: given: parameter", parameter, says.where)))
            for parameter, unit in says.units.items():
                source = output.given.get(parameter, parameter)
                if isinstance(source, str):
                    note(source, unit, says.name)
        takes = [
            (choice.name, name, source)
            for choice in calculator.inputs
            for option in (choice.table.values() if isinstance(choice, Choice) else ())
            for name, source in option.takes.items()
        ]
        spoken = {*calculator._names(), *self._taken()}
        for given in calculator.inputs:
            if isinstance(given, Slider) and given.unit is not None and given.name in {t[2] for t in takes}:
                units.setdefault(given.name, given.unit)
        while takes:  # a value may be taken from one that is taken itself
            told = [t for t in takes if t[1] in units or (t[2] in units and t[1] in spoken)]
            if not told:
                raise self.fail(f"choice {takes[0][0]}: no formula takes {takes[0][1]!r}.")
            for where, name, source in told:
                note(source, units.get(name) or units[source], f"choice {where}")
                note(name, units[source], f"choice {where}")
            takes = [t for t in takes if t not in told]

    def _check_input_unit(self, slider: Slider | NumberField) -> None:
        kind = "slider" if isinstance(slider, Slider) else "number field"
        unit, stated = self.calculator.units.get(slider.name), getattr(slider, "unit", None)
        if unit is None and stated and slider.name in self._taken():  # what no formula takes states its unit
            unit = self.calculator.units.setdefault(slider.name, stated)
        if unit is None:
            raise self.fail(f"{kind} {slider.name}: no formula takes a number of this name.")
        if isinstance(slider, NumberField):
            return
        if slider.unit is not None and slider.unit.symbol != unit.symbol:
            raise self.fail(f"slider {slider.name}: its unit is {slider.unit.symbol!r}, the formula's {unit.symbol!r}.")
        if unit.positive and (slider.low <= 0 or slider.zero):
            raise self.fail(f"slider {slider.name}: the formula needs more than zero. Raise low.")
        if slider.low < 0 and not unit.signed:
            raise self.fail(f"slider {slider.name}: the formula takes no negative number. Raise low.")

    def _taken(self) -> list[str]:
        """The names that a ratio, a sum or a stack takes."""
        calculator = self.calculator
        names = [n for o in calculator.outputs if isinstance(o, Ratio) for n in (o.over, o.under)]
        names += [n for o in calculator.outputs if isinstance(o, Sum) for n in (*o.of, *o.minus)]
        return names + ([calculator.stack.capacity] if calculator.stack else [])

    def _collect_sums(self) -> None:
        """What is added up has one unit: the sum's, and that of a part which no formula gives one."""
        calculator, units = self.calculator, self.calculator.units
        added = {f"output {o.name}": [*o.of, *o.minus, o.name] for o in calculator.outputs if isinstance(o, Sum)}
        if calculator.stack:
            added["stack"] = [*calculator.stack.parts, *filter(None, [calculator.stack.capacity])]
        for output in calculator.outputs:
            if isinstance(output, Sum) and not output.of:
                raise self.fail(f"output {output.name}: a Sum needs what it is of.")
        for _ in added:  # a sum may be part of another
            for where, names in added.items():
                known = {units[n].symbol: n for n in names if n in units}
                if len(known) > 1:
                    told = " and ".join(f"{n!r} is {symbol or 'a number'}" for symbol, n in known.items())
                    raise self.fail(f"{where}: {told}. What adds up has one unit.")
                for name in names if known else ():
                    unit = units[next(iter(known.values()))]
                    # The unit itself where it can be: seconds are written as minutes because they are SECOND.
                    units.setdefault(name, dataclasses.replace(unit, positive=False) if unit.positive else unit)

    def _known(self) -> set[str]:
        """Every name that some state gives a value."""
        calculator = self.calculator
        names = set(calculator.computed) | set(calculator.table)
        for choice in calculator.inputs:
            for option in choice.table.values() if isinstance(choice, Choice) else ():
                names |= set(option.gives())
        return names

    def _check_text(self, where: str, text: str) -> None:
        known = self._known()
        for name in PLACEHOLDER.findall(text):
            if name not in known:
                raise self.fail(str(unknown(f"{where}: placeholder", name, sorted(known))))

    def _check_verdict(self) -> None:
        cases = self.calculator.verdict
        if not cases or cases[-1].when:
            raise self.fail("verdict: the last case must hold always. Add a Case without conditions.")
        known = self._known()
        for case in (*cases, *self.calculator.cautions):
            self._check_text("verdict", case.text)
            for left, relation, right in case.when:
                if relation not in RELATIONS:
                    raise self.fail(str(unknown("verdict: relation", relation, RELATIONS)))
                for name in (left, right):
                    if isinstance(name, str) and name not in known:
                        raise self.fail(str(unknown("verdict: name", name, sorted(known))))

    def _check_curve(self) -> None:
        curve = self.calculator.curve
        if curve is None:
            return
        if not curve.lines:
            raise self.fail("curve: it needs at least one line.")
        names = [curve.x, *(line.y for line in curve.lines), *(n for pair in curve.at for n in pair)]
        names += [n for m in curve.marks for n in (m.x, m.y) if n]
        names += [n for n in (curve.low, curve.high) if isinstance(n, str)]
        self._check_known("curve", names)
        for text in (curve.describe, curve.slope_label, *(m.label for m in curve.marks)):
            self._check_text("curve", text)
        self._check_vary("curve", curve.vary)
        swept = self.calculator.table.get(curve.x)
        if (curve.low is None or curve.high is None) and not isinstance(swept, Slider):
            raise self.fail(f"curve: {curve.x!r} is not a slider, so low and high must be given.")
        low = curve.low if curve.low is not None else swept.low  # type: ignore[union-attr]
        if curve.scale.startswith("log") and not isinstance(low, str) and low <= 0:
            raise self.fail("curve: a log scale needs low > 0.")
        if any(m.dot and not m.y for m in curve.marks):
            raise self.fail("curve: a mark with a dot needs y.")

    def _check_known(self, where: str, names: Iterable[str]) -> None:
        known = self._known()
        for name in names:
            if name not in known:
                raise self.fail(str(unknown(f"{where}: name", name, sorted(known))))

    def _check_vary(self, where: str, vary: str) -> None:
        if vary and not isinstance(self.calculator.table.get(vary), Choice):
            raise self.fail(f"{where}: vary is {vary!r}, which is not a choice of this calculator.")

    def _check_stack(self) -> None:
        stack = self.calculator.stack
        if stack is None:
            return
        if not stack.parts:
            raise self.fail("stack: it needs at least one part.")
        self._check_known("stack", [*stack.parts, *filter(None, [stack.capacity])])
        self._check_text("stack", stack.describe)
        self._check_vary("stack", stack.vary)

    def _check_compare(self) -> None:
        table = self.calculator.compare
        if table is None:
            return
        if not table.vary or not table.columns:
            raise self.fail("compare: a table needs the choice that varies and at least one column.")
        self._check_vary("compare", table.vary)
        self._check_known("compare", table.columns)

    def _check_bits(self) -> None:
        if bits := self.calculator.bits:
            self._check_known("bits", [bits.value, bits.exponent_bits, bits.mantissa_bits, bits.flavour])

    def _check_spoken(self) -> None:
        """What is written needs a unit to be written with."""
        for name in self.calculator._names():
            if name not in self.calculator.units and name in self._known():
                raise self.fail(f"{name!r} is shown, but no formula, ratio or sum says what unit it has.")
        for name, output in self.calculator.computed.items():
            if getattr(output, "whole", False) and self.calculator.units[name].symbol:
                raise self.fail(f"output {name}: only a plain number is written whole.")

    def _check_wiring(self) -> None:
        """Walk from every shown value to the inputs, for each way in which the options can wire it."""
        choices = [c for c in self.calculator.inputs if isinstance(c, Choice)]
        ways = []
        for choice in choices:
            different = {}
            for option in choice.table.values():
                different.setdefault((*option.sets, *option.takes.items(), *option.formulas.items()), option)
            ways.append(list(different.values()))
        for combination in itertools.product(*ways):
            self._walk(dict(zip((c.name for c in choices), combination, strict=True)))

    def _walk(self, chosen: Mapping[str, Option]) -> None:
        calculator = self.calculator
        done: set[str] = set()

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise self.fail(f"{' needs '.join((*path[path.index(name) :], name))}: a cycle. Break it.")
            if name in done:
                return
            path = (*path, name)
            output = calculator.computed.get(name)
            given: Mapping[str, str | float] = {}
            if isinstance(output, Ratio | Sum):
                parts = (output.over, output.under) if isinstance(output, Ratio) else (*output.of, *output.minus)
                for part in parts:
                    visit(part, path)
                return
            formula = output.formula if output else None
            if output:
                given = output.given
            else:
                formula = next((o.formulas[name] for o in chosen.values() if name in o.formulas), None)
            if formula:
                for parameter in read(formula).where:
                    source = given.get(parameter, parameter)
                    if isinstance(source, str):
                        visit(source, path)
            elif taken := next((o.takes[name] for o in chosen.values() if name in o.takes), None):
                visit(taken, path)
            elif not any(name in o.gives() for o in chosen.values()) and name not in calculator.table:
                wanted = f" (needed by {path[-2]})" if len(path) > 1 else ""
                state = ", ".join(f"{c} {o.name!r}" for c, o in chosen.items())
                where = f" with {state}" if state else ""
                raise self.fail(
                    f"nothing gives {name!r} a value{wanted}{where}. "
                    f"{unknown('name', name, sorted(self._known()))} Add an input or an output of this name."
                )
            done.add(name)

        bits = calculator.bits
        for name in [*calculator._names(), *([bits.exponent_bits, bits.mantissa_bits, bits.flavour] if bits else [])]:
            visit(name, ())
