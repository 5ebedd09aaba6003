"""What a lab notebook calls: predict, then measure, then reconcile.

The same cells run live (in this session, at this device's scale) and in replay (a recorded run, said so). What
replay prints depends on the recorded run and on the learner's own numbers only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from efflab import records
from efflab.errors import EfflabError, unknown
from efflab.reconcile import columns, error, percent, topic
from efflab.records import LabBook, Prediction, Record
from efflab.units import SECOND, parse, show

MODES = ("live", "replay")


class Lab:
    """One lab in one session.

    Args:
        topic: such as "roofline".
        mode: "live" or "replay"; None takes $EFFLAB_MODE, else "live".
        record: in replay, the file to replay; None takes the newest recorded run that comes with the course.
        labbook: where predictions and records are kept; None takes $EFFLAB_LABBOOK, else ./labbook.
        scale, device: in live mode, what to measure; None lets the device decide.

    Raises:
        EfflabError: an unknown topic or mode, or no recorded run to replay.
    """

    def __init__(
        self,
        topic: str,
        mode: str | None = None,
        *,
        record: str | os.PathLike[str] | None = None,
        labbook: str | os.PathLike[str] | None = None,
        scale: str | None = None,
        device: str | None = None,
    ) -> None:
        from efflab import experiments

        chosen = mode or os.environ.get("EFFLAB_MODE") or "live"
        if chosen == "submit":
            raise EfflabError(
                "mode 'submit': sending a lab to a Slurm queue is not offered yet. "
                "Run 'efflab run' in a job of yours and open its record with replay, or use live or replay."
            )
        if chosen not in MODES:
            raise unknown("mode", chosen, MODES)
        self._experiment = experiments.get(topic)
        self.topic: str = topic
        self.mode: str = chosen
        self.labbook = LabBook(labbook)
        self._file, self._scale, self._device = record, scale, device
        self._prediction: Prediction | None = None
        self._record: Record | None = None
        self._path: Path | None = None
        self._replayed = self._load() if chosen == "replay" else None

    def __repr__(self) -> str:
        return f"Lab({self.topic!r}, mode={self.mode!r})"

    def _load(self) -> Record:
        if self._file is not None:
            found = records.load_record(self._file)
            if found.topic != self.topic:
                raise EfflabError(f"{self._file}: a record of {found.topic!r}; one of {self.topic!r} is needed.")
            return found
        runs = records.recorded(self.topic)
        if not runs:
            raise EfflabError(
                f"replay: no recorded run of {self.topic!r} comes with this copy. "
                "Give one with record=, or use mode='live'."
            )
        return runs[-1]

    def start(self) -> None:
        """Print in which mode this lab runs, and on what."""
        if self._replayed is not None:
            print(topic(self.topic).banner(self._replayed))
        else:
            from efflab.measure import device

            environment = device.environment(device.choose(self._device))
            print(f"Live on {environment.device}, {environment.threads} threads. Everything is measured here.")

    # Predict

    def predict(
        self, times: Mapping[str, str | float], limits: Mapping[str, str] | None = None, *, note: str = ""
    ) -> None:
        """Commit to a prediction. It is kept in the lab book before anything can be measured.

        Args:
            times: case to time with its unit: {"matmul-2048": "80 ms"}.
            limits: case to what limits it: "overhead", "memory" or "compute".
            note: how you got there, for yourself.

        Raises:
            EfflabError: an unknown case or limit, a time without unit or not greater than zero, something
                measured already, or a lab book that cannot be written.
        """
        if self._record is not None:
            raise EfflabError("predict: this run is measured already. Make a new Lab to predict another one.")
        limits = dict(limits or {})
        if not times and not limits:
            raise EfflabError("predict: give at least one time, such as {'matmul-2048': '80 ms'}, or one limit.")
        cases = self.cases()
        outputs: dict[str, tuple[float, str]] = {}
        for case, written in times.items():
            if case not in cases:
                raise unknown("predict: case", case, cases)
            seconds = parse(written, SECOND, f"predict: time of {case}")
            if not (seconds > 0 and math.isfinite(seconds)):
                raise EfflabError(f"predict: time of {case}: {written!r} is not greater than zero.")
            outputs[f"{case}.time"] = (seconds, "s")
        regimes = ("overhead", "memory", "compute")
        for case, limit in limits.items():
            if case not in cases:
                raise unknown("predict: case", case, cases)
            if limit not in regimes:
                raise unknown(f"predict: limit of {case}", limit, regimes)
            outputs[f"{case}.limiting_factor"] = (float(regimes.index(limit)), "")
        prediction = Prediction.new(self.topic, outputs, source="lab", note=note, inputs={"mode": self.mode})
        self.labbook.save_prediction(prediction)
        self._prediction = prediction
        print(f"Committed: {len(times)} times and {len(limits)} limits. They are in your lab book.")

    def cases(self) -> list[str]:
        """The names of the cases that this lab measures."""
        if self._replayed is not None:
            return [str(c) for c in self._replayed.spec.get("cases", [])]
        from efflab.experiments import runner
        from efflab.measure import device

        chosen = device.choose(self._device)
        scale = self._scale or runner.default_scale(chosen)
        return list(self._experiment.plan(scale, chosen, device.environment(chosen), None).spec["cases"])

    # Measure

    def measure(self) -> None:
        """Measure the experiment here, or load the recorded run under its banner.

        Raises:
            EfflabError: no prediction is committed yet, or the run failed; says what is kept.
        """
        if self._prediction is None:
            raise EfflabError(
                "measure: commit to a prediction first, with lab.predict(...). A prediction made after the "
                "measurement is worth nothing."
            )
        if self._record is not None:
            raise EfflabError("measure: this lab has measured already. Make a new Lab to measure again.")
        if self._replayed is not None:
            print(topic(self.topic).banner(self._replayed))
            self._record = self._replayed
        else:
            from efflab.experiments import runner

            self._record, self._path = runner.run(
                self._experiment,
                scale=self._scale,
                device=self._device,
                out=self.labbook.path / "records",
                report=lambda line: print(line, flush=True),
            )
            print(f"Measured: {len(self._record.samples)} samples, kept in your lab book as {self._path.name}.")
        for line in topic(self.topic).missing(self._record):
            print(f"Not in it: {line}")

    def record(self) -> Record:
        """The record of this run.

        Raises:
            EfflabError: nothing is measured yet.
        """
        if self._record is None:
            raise EfflabError("record: nothing is measured yet. Call lab.predict(...), then lab.measure().")
        return self._record

    # Reconcile

    def reconcile(self) -> None:
        """Print your prediction, the formula's and the measurement in one table, with why they part.

        Raises:
            EfflabError: nothing is measured yet.
        """
        record = self.record()
        rows = {r.case: r for r in topic(self.topic).points(record)}
        yours = _yours(self._prediction)
        table, reasons, factors = [], [], []
        for case in dict.fromkeys(case for case, _ in yours):
            row = rows.get(case)
            if row is None:
                table.append([case, "", "", "", "not measured", "", ""])
                continue
            time, limit = yours.get((case, "time")), yours.get((case, "limiting_factor"))
            said = ("overhead", "memory", "compute")[int(limit)] if limit is not None else ""
            if time is not None:
                factors.append(max(time / row.measured_time, row.measured_time / time))
            table.append(
                [
                    case,
                    said and f"{said} {'✓' if said == row.by_intensity else f'({row.by_intensity})'}",
                    show(time, SECOND) if time is not None else "",
                    show(row.predicted_time, SECOND),
                    show(row.measured_time, SECOND),
                    percent(error(time, row.measured_time)) if time is not None else "",
                    percent(row.error),
                ]
            )
            reasons.append(f"{case}: {row.explanation}")
        head = ["case", "your limit", "you", "formula", "measured", "your error", "formula's error"]
        print(columns(head, table, (2, 3, 4, 5, 6)))
        if reasons:
            print("\nWhy the formula and the measurement part:")
            print("\n".join(reasons))
        if factors:
            print(f"\nYour times are off by a factor of {records.median(factors):.2g} (median of {len(factors)}).")

    def table(self) -> None:
        """Print every kernel of the run: ceilings, predicted, measured, why, and the regime by three methods."""
        print(topic(self.topic).text(self.record()))

    def show(self, kind: Literal["roofline", "errors"] = "roofline") -> Any:
        """A picture of the run.

        Raises:
            EfflabError: nothing is measured yet, an unknown picture, or matplotlib is missing.
        """
        from efflab import plots

        drawn = {"roofline": plots.roofline, "errors": plots.errors}
        if kind not in drawn:
            raise unknown("picture", kind, drawn)
        return drawn[kind](self.record())


def _yours(prediction: Prediction | None) -> dict[tuple[str, str], float]:
    found = {}
    for name, quantity in (prediction.outputs if prediction else {}).items():
        case, _, what = name.rpartition(".")
        found[case, what] = quantity.value
    return found
