"""Pictures that explain, against what they explain."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efflab.site import diagrams


@given(st.integers(1, 8))
def test_the_ring_adds_up_real_numbers(ranks):
    """Everything is there at the end, each rank receives one chunk a step, and half of the steps add up."""
    states = diagrams.contributions(ranks)
    assert len(states) == 2 * (ranks - 1) + 1
    assert states[0] == [[1] * ranks] * ranks and states[-1] == [[ranks] * ranks] * ranks
    half = np.array(states[ranks - 1])
    assert (half == ranks).sum() == ranks  # after the first half each rank has the sum of one chunk
    assert all((half[r] == ranks).sum() == 1 for r in range(ranks))
    for before, after in itertools.pairwise(states):
        assert (np.array(before) != np.array(after)).sum() == ranks  # each rank receives one chunk a step


@given(st.floats(1, 10), st.integers(1, 8), st.floats(0.1, 20), st.booleans())
def test_buckets_follow_one_another_and_their_gradients(backward, buckets, communication, beside):
    gpu, network = diagrams.reduced(backward, buckets, communication, beside)
    assert gpu[-1].end == pytest.approx(backward)
    assert sum(b.end - b.start for b in network) == pytest.approx(communication)
    for ready, sent in zip(gpu, network, strict=True):
        assert sent.start >= ready.end - 1e-9 and sent.text == ready.text
        assert beside or sent.start >= backward
    assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(network))


@pytest.mark.parametrize("schedule", ["GPipe", "1F1B", "interleaved"])
@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 3))
def test_each_microbatch_passes_every_part_there_and_back(schedule, stages, times_as_many, chunks):
    chunks = chunks if schedule == "interleaved" else 1
    microbatches = stages * times_as_many
    done = diagrams.execute(schedule, stages, microbatches, chunks)
    for boxes in done.boxes:
        assert len(boxes) == 2 * microbatches * chunks
        assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(boxes))
        kinds = [sorted(b.text for b in boxes if b.kind == kind) for kind in ("forward", "backward")]
        assert kinds[0] == kinds[1] == sorted(str(m + 1) for m in range(microbatches) for _ in range(chunks))
    assert done.time == max(b[-1].end for b in done.boxes)


def test_an_order_that_cannot_go_on_is_named():
    with pytest.raises(ValueError, match="stuck with 2 stages and 3"):
        diagrams.execute("interleaved", 2, 3, 2)


def test_a_figure_is_well_formed_and_says_what_it_shows():
    rows = [
        ("Heading", []),
        ("GPU <0>", [diagrams.Box(0, 2, "1", "forward"), diagrams.Box(2, 3, "1", "backward", True)]),
    ]
    for figure in (
        diagrams.timeline(rows, 'Two "boxes".', caption="One & two"),
        diagrams.ring(4, "A ring.", caption="Four"),
    ):
        root = ElementTree.fromstring(figure)
        svg = root.find(".//svg")
        width, height = (float(v) for v in svg.get("viewBox").split()[2:])
        assert svg.get("role") == "img" and svg.get("aria-label").endswith(".")
        for box in svg.iter("rect"):
            x, y, w, h = (float(box.get(k)) for k in ("x", "y", "width", "height"))
            assert min(x, y) >= 0 and x + w <= width and y + h <= height
        assert not re.search(r"style=|#[0-9a-f]{3}", figure)  # colours are the page's
