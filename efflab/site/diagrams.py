"""Pictures that explain, drawn from what they explain: a ring's messages, a timeline of operations.

A drawing is SVG inside the page. Its colours are the page's, by class, so that it is light or dark as the page is.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Schedule = Literal["GPipe", "1F1B", "interleaved"]
Row = tuple[str, Sequence["Box"]]


@dataclass(frozen=True)
class Box:
    """One operation on a timeline: from when to when, what is written in it, and of which kind it is."""

    start: float
    end: float
    text: str
    kind: Literal["forward", "backward", "network", "other"]
    second: bool = False  # of an odd chunk, in a stronger colour


# What is drawn


def contributions(ranks: int) -> list[list[list[int]]]:
    """How many ranks' numbers each chunk holds, by rank and chunk, before a ring all-reduce and after each step."""
    held = [[1] * ranks for _ in range(ranks)]
    states = [[row.copy() for row in held]]
    for step in range(2 * (ranks - 1)):
        adding = step < ranks - 1
        sent = [(r, (r - step) % ranks) for r in range(ranks)]  # a turn further, the same rule passes sums on
        values = [held[r][chunk] for r, chunk in sent]
        for (r, chunk), value in zip(sent, values, strict=True):
            neighbour = held[(r + 1) % ranks]
            neighbour[chunk] = neighbour[chunk] + value if adding else value
        states.append([row.copy() for row in held])
    return states


def reduced(backward: float, buckets: int, communication: float, beside: bool) -> tuple[list[Box], list[Box]]:
    """A backward pass and the all-reduces of its buckets, beside it or after it: what GPU and network do."""
    gpu = [Box(backward * i / buckets, backward * (i + 1) / buckets, str(i + 1), "backward") for i in range(buckets)]
    network: list[Box] = []
    for box in gpu:
        start = max(box.end if beside else backward, network[-1].end if network else 0.0)
        network.append(Box(start, start + communication / buckets, box.text, "network"))
    return gpu, network


@dataclass
class Executed:
    """A pipeline schedule that was executed.

    Attributes:
        time: until the last operation ended.
        boxes: of each stage, its operations.
        peak: of each stage, the most microbatches whose activations it held.
        sent: of each stage, the messages that it sent.
    """

    time: float
    boxes: list[list[Box]]
    peak: list[float]
    sent: list[int]
    busy: list[float] = field(default_factory=list)

    @property
    def idle_share(self) -> float:
        """Share of the whole time in which the first stage stands idle."""
        return 1 - self.busy[0] / self.time


def orders(schedule: Schedule, stages: int, microbatches: int, chunks: int = 1) -> list[list[tuple[str, int, int]]]:
    """What each stage does in which order: ("F" or "B", microbatch, chunk).

    Of the interleaved schedule, as Megatron-LM orders it, `microbatches` is a multiple of `stages`; of the others,
    `chunks` is 1.
    """
    if schedule == "GPipe":
        return [[(kind, m, 0) for kind in "FB" for m in range(microbatches)] for _ in range(stages)]
    total, group = microbatches * chunks, stages if chunks > 1 else microbatches
    forward, backward = [], []
    for number in range(total):
        round_, place = divmod(number, group * chunks)
        chunk, within = divmod(place, group)
        forward.append(("F", round_ * group + within, chunk))
        backward.append(("B", round_ * group + within, chunks - 1 - chunk))
    found = []
    for stage in range(stages):
        first = stages - stage - 1  # forward passes before the first backward pass
        if schedule == "interleaved":
            first = total if microbatches == stages else 2 * first + (chunks - 1) * stages
        first = min(first, total)
        paired = [op for pair in zip(forward[first:], backward, strict=False) for op in pair]
        found.append([*forward[:first], *paired, *backward[total - first :]])
    return found


def execute(
    schedule: Schedule, stages: int, microbatches: int, chunks: int = 1, forward: float = 1, backward: float = 2
) -> Executed:
    """Run a schedule, each operation as soon as its stage is free and its input is there.

    `forward` and `backward` are the times of a whole stage for a microbatch; a chunk takes its part of them.
    """
    lists = orders(schedule, stages, microbatches, chunks)
    last = stages * chunks - 1
    ended: dict[tuple[str, int, int], float] = {}
    at, held = [0] * stages, [0] * stages
    done = Executed(0.0, [[] for _ in range(stages)], [0.0] * stages, [0] * stages, [0.0] * stages)
    while any(at[s] < len(lists[s]) for s in range(stages)):
        before = sum(at)
        for s in range(stages):
            while at[s] < len(lists[s]):
                kind, microbatch, chunk = lists[s][at[s]]
                part = chunk * stages + s  # of the model, in the order of its layers
                if kind == "F":
                    needs = [("F", microbatch, part - 1)] if part else []
                else:
                    needs = [("F", microbatch, part) if part == last else ("B", microbatch, part + 1)]
                if not all(n in ended for n in needs):
                    break
                free = done.boxes[s][-1].end if done.boxes[s] else 0.0
                start = max([free, *(ended[n] for n in needs)])
                takes = (forward if kind == "F" else backward) / chunks
                ended[kind, microbatch, part] = start + takes
                look: Literal["forward", "backward"] = "backward" if kind == "B" else "forward"
                done.boxes[s].append(Box(start, start + takes, str(microbatch + 1), look, chunk % 2 == 1))
                done.busy[s] += takes
                held[s] += 1 if kind == "F" else -1
                done.peak[s] = max(done.peak[s], held[s] / chunks)
                done.sent[s] += part != last if kind == "F" else part != 0
                at[s] += 1
        if sum(at) == before:
            raise ValueError(f"the schedule {schedule} is stuck with {stages} stages and {microbatches} microbatches")
    done.time = max(boxes[-1].end for boxes in done.boxes)
    return done


# Drawings


def timeline(rows: Iterable[Row], alt: str, *, caption: str = "", scale: float = 20, names: int = 90) -> str:
    """Rows of boxes over a common time, as the HTML of a figure.

    Args:
        rows: each with its name; one without a name or boxes makes a gap, and one with a name alone a heading.
        alt: what the picture shows, for those who do not see it.
        caption: a text under it.
        scale: pixels of a unit of time.
        names: pixels for the names on the left.
    """
    height, gap, y, parts, longest = 24, 6, 4.0, [], 0.0
    for name, boxes in rows:
        if not boxes:
            if name:
                y += 6
                parts.append(_text(0, y + 14, name, "efflab-d-head"))
                y += 22
            else:
                y += 12
            continue
        parts.append(_text(0, y + 16, name))
        for box in boxes:
            x, width = names + box.start * scale, (box.end - box.start) * scale
            longest = max(longest, box.end)
            look = f"efflab-d-{box.kind}" + (" efflab-d-second" if box.second else "")
            parts.append(f'<rect class="{look}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height}"/>')
            if width >= 7 * len(box.text) + 2:
                parts.append(_text(x + width / 2, y + 16, box.text, "efflab-d-middle"))
        y += height + gap
    return _figure(parts, names + longest * scale + 2, y, alt, caption)


def ring(ranks: int, alt: str, *, caption: str = "") -> str:
    """The steps of an all-reduce on a ring of ranks, as the HTML of a figure: each chunk with how much it holds."""
    cell, apart, top, left = 18, 14, 22, 48
    parts = []
    for rank in range(ranks):
        parts.append(_text(0, top + rank * cell + 14, f"rank {rank}"))
    for number, state in enumerate(contributions(ranks)):
        x = left + number * (ranks * cell + apart)
        parts.append(_text(x + ranks * cell / 2, 14, "start" if not number else f"step {number}", "efflab-d-middle"))
        for rank, row in enumerate(state):
            for chunk, held in enumerate(row):
                look = "efflab-d-full" if held == ranks else "efflab-d-some" if held > 1 else "efflab-d-one"
                corner = f'x="{x + chunk * cell}" y="{top + rank * cell}"'
                parts.append(f'<rect class="{look}" {corner} width="{cell}" height="{cell}"/>')
                parts.append(_text(x + (chunk + 0.5) * cell, top + rank * cell + 14, str(held), "efflab-d-middle"))
    width = left + (2 * ranks - 1) * (ranks * cell + apart) - apart + 2
    return _figure(parts, width, top + ranks * cell + 4, alt, caption)


def show(figure: str) -> None:
    """Display a figure from a page's cell."""
    from IPython.display import HTML, display

    display(HTML(figure))


def _text(x: float, y: float, text: str, look: str = "") -> str:
    attribute = f' class="{look}"' if look else ""
    return f'<text{attribute} x="{x:g}" y="{y:g}">{html.escape(text)}</text>'


def _figure(parts: Sequence[str], width: float, height: float, alt: str, caption: str) -> str:
    """The figure scrolls sideways in its own box where the screen is narrower than the drawing."""
    under = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    said = html.escape(alt, quote=True)
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    drawing = f'<svg role="img" aria-label="{said}" {size}>{"".join(parts)}</svg>'
    name = html.escape(caption or alt, quote=True)  # regions of a page are told apart by their names
    box = f'<div class="efflab-drawing" tabindex="0" role="region" aria-label="{name}">{drawing}</div>'
    return f'<figure class="efflab-figure efflab-diagram">{box}{under}</figure>'
