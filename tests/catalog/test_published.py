"""Every published number is reproduced, and where a source differs, it does."""

from __future__ import annotations

import pytest

from efflab import catalog, validation
from efflab.errors import EfflabError

ROWS = catalog.published()


@pytest.mark.parametrize("row", ROWS, ids=[r.id for r in ROWS])
def test_published(row):
    result = validation.evaluate(row)
    assert result.agrees, f"printed {row.printed}, ours {result.ours:.6g}, off by {result.difference:+.2%}"
    if row.differs:
        assert abs(result.difference) > row.tolerance, "the source does not differ: ours agrees with the printed value"


def test_enough_rows_and_sources():
    assert len([r for r in ROWS if r.topic == "roofline"]) >= 20
    assert len({r.source.title for r in ROWS}) >= 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"formula": "roofline.ridge"}, "ridge_point"),
        ({"inputs": {"peak": "1 FLOP/s", "memory_bandwidth": "1 B/s"}}, "peak_performance"),
        ({"inputs": {"peak_performance": 1, "memory_bandwidth": "1 B/s"}}, "has no unit"),
        ({"printed": "1"}, "has no unit"),
    ],
)
def test_a_bad_row_is_named(change, says):
    good = dict(
        id="example",
        topic="roofline",
        formula="roofline.ridge_point",
        inputs={"peak_performance": "1 TFLOP/s", "memory_bandwidth": "1 TB/s"},
        printed="1 FLOP/B",
        tolerance=0.01,
        source={"title": "Example", "url": "https://example.org"},
    )
    assert validation.evaluate(catalog.Published(**good)).agrees
    with pytest.raises(EfflabError, match=says) as caught:
        validation.evaluate(catalog.Published(**good | change))
    assert "example" in str(caught.value)
