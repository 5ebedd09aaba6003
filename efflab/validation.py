"""Every published number against our formula.

The tests assert what `rows` computes and the page `validation.md` prints it, so the page cannot say anything
that the tests have not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from efflab import catalog
from efflab.catalog import Published
from efflab.errors import EfflabError, unknown
from efflab.formulas import reading
from efflab.units import parse


@dataclass(frozen=True)
class Row:
    """One published number and ours.

    Attributes:
        published: the catalog's row.
        printed: the printed value in base units.
        expected: what the formula should give: the printed value, or the correct one where the source differs.
        ours: what the formula gives.
        unit: the formula's unit.
    """

    published: Published
    printed: float
    expected: float
    ours: float
    unit: object

    @property
    def difference(self) -> float:
        """Relative difference of ours from the printed value."""
        return self.ours / self.printed - 1

    @property
    def agrees(self) -> bool:
        """Whether ours is within the row's tolerance of what it should be."""
        return abs(self.ours / self.expected - 1) <= self.published.tolerance

    @property
    def verdict(self) -> str:
        """For the page: "agrees", or how the source differs; "disagrees" is a defect and fails the tests."""
        if not self.agrees:
            return "disagrees"
        return self.published.differs.kind if self.published.differs else "agrees"


def evaluate(row: Published) -> Row:
    """Run a row's formula on its inputs.

    Raises:
        EfflabError: an unknown formula or input, or an input without its unit; names the row.
    """
    try:
        function = reading.find(row.formula)
        read = reading.read(function)
        values: dict[str, object] = {}
        for name, text in row.inputs.items():
            if name in read.options:
                values[name] = next((o for o in read.options[name] if o == text), text)  # YAML's 1 is read as 1.0
            elif name in read.units:
                values[name] = parse(text, read.units[name], name)
            else:
                raise unknown("input", name, [*read.units, *read.options])
        printed = parse(row.printed, read.unit, "printed")
        expected = parse(row.differs.correct, read.unit, "differs.correct") if row.differs else printed
        return Row(row, printed, expected, float(function(**values)), read.unit)
    except EfflabError as error:
        raise EfflabError(f"published/{row.topic}.yaml: {row.id}: {error}") from None


def rows(topic: str | None = None) -> list[Row]:
    """Every row of a topic, or of all topics, evaluated."""
    return [evaluate(r) for r in catalog.published() if topic in (None, r.topic)]
