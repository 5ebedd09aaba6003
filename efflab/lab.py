"""What a lab notebook calls: predict, then measure, then reconcile.

The same cells run live (in this session, at this device's scale), in submit (in a Slurm job, then fetched) and in
replay (a recorded run, said so). What replay prints depends on the recorded run and on the learner's own numbers only.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efflab import records, submit
from efflab.errors import EfflabError, unknown
from efflab.reconcile import (
    CALIBRATED,
    PERCENT,
    SHARES,
    Topic,
    columns,
    energy_cell,
    energy_evidence,
    energy_text,
    error,
    percent,
)
from efflab.reconcile import topic as topic_module
from efflab.records import LabBook, Prediction, Record, Sample, median
from efflab.units import BYTE, SECOND, UNITS, Unit, parse, show

MODES = ("live", "submit", "replay")
AGAIN = "Do not build on this run: close other programs and measure again."


class Lab:
    """One lab in one session.

    Args:
        topic: such as "roofline".
        mode: "live", "submit" or "replay"; None takes $EFFLAB_MODE, else "live".
        record: in replay, the file to replay; None takes the newest recorded run that comes with the course.
        labbook: where predictions and records are kept; None takes $EFFLAB_LABBOOK, else the course's own.
        scale, device: in live mode, what to measure; None lets the device decide.
        nodes, gpus: in submit mode, how many nodes and how many GPUs of each; gpus None takes one. `scale` None then
            takes "multi" for several, "gpu" for one and "cpu" for none.
        cluster: in submit mode, the site's cluster.yml; None looks for it as `efflab submit` does.

    Raises:
        EfflabError: an unknown topic or mode, an argument of another mode, no recorded run to replay, or no Slurm.
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
        nodes: int = 1,
        gpus: int | None = None,
        cluster: str | os.PathLike[str] | None = None,
    ) -> None:
        from efflab import experiments

        chosen = mode or os.environ.get("EFFLAB_MODE") or "live"
        if chosen not in MODES:
            raise unknown("mode", chosen, MODES)
        if chosen != "submit" and (nodes != 1 or gpus is not None or cluster is not None):
            raise EfflabError(f"mode {chosen!r}: nodes, gpus and cluster belong to mode 'submit'. Leave them out.")
        if chosen == "submit" and device is not None:
            raise EfflabError("mode 'submit': the job finds its device. Leave device out; gpus=0 measures on a CPU.")
        self._experiment = experiments.get(topic)
        self._topic: Topic = topic_module(topic)
        self.topic: str = topic
        self.mode: str = chosen
        self.labbook = LabBook(labbook)
        self._file, self._scale, self._device = record, scale, device
        self._outputs: dict[str, float] = {}  # everything committed to, in base units
        self._committed: list[str] = []  # the ids of those predictions
        self._measures: dict[str, tuple[str, Unit]] = {}  # the metric and unit of each case
        self._seen = False  # the cases' results were shown
        self._record: Record | None = None
        self._path: Path | None = None
        self._replayed = self._load() if chosen == "replay" else None
        self._wanted: submit.Request | None = None
        self._job: submit.Job | None = None
        if chosen == "submit":
            self._prepare(nodes, gpus, scale, cluster, labbook)

    def __repr__(self) -> str:
        return f"Lab({self.topic!r}, mode={self.mode!r})"

    def _prepare(self, nodes: int, gpus: int | None, scale: str | None, cluster: Any, labbook: Any) -> None:
        submit.required()
        site, self._cluster = submit.load_cluster(cluster)
        wanted = submit.request(self.topic, nodes=nodes, gpus=gpus, scale=scale, cluster=site)
        # The job has to run at the scale whose cases are predicted here.
        self._scale = wanted.scale or ("gpu" if wanted.gpus else "cpu")
        self._wanted = dataclasses.replace(wanted, scale=self._scale)
        self.labbook = submit.book(site, labbook)

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
            print(self._topic.banner(self._replayed))
        elif self._wanted is not None:
            site = f", as {self._cluster} says" if self._cluster else ""
            print(f"Submit: measured in a Slurm job at {self._scale} scale on {self._wanted.said}{site}.")
        else:
            from efflab.measure import device

            environment = device.environment(device.choose(self._device))
            print(f"Live on {environment.device}, {environment.threads} threads. Everything is measured here.")

    # Predict

    def cases(self) -> dict[str, dict[str, records.Scalar]]:
        """What this lab measures: the point of each case, by its name."""
        if self._replayed is not None:
            found = [(s.point, s.metric, s.unit) for s in self._replayed.samples if "case" in s.point]
        else:
            planned = self._plan().cases if self._wanted is None else self._elsewhere()
            found = [(c.point, c.metric, c.unit) for c in planned]
        cases = self._topic.cases([point for point, _, _ in found])
        for point, metric, unit in found:  # the first sample of a case is its result
            self._measures.setdefault(str(point["case"]), (metric, UNITS[unit]))
        return cases

    def _plan(self) -> Any:
        from efflab.experiments import runner
        from efflab.measure import device

        chosen = device.choose(self._device)
        scale = self._scale or runner.default_scale(chosen)
        return self._experiment.plan(scale, chosen, device.environment(chosen), None)

    def _elsewhere(self) -> list[Any]:
        """The cases on the job's device, which is not here. What depends on the device itself may differ there."""
        from efflab.measure import device

        wanted = self._wanted
        assert wanted is not None
        if planned := getattr(self._experiment, "elsewhere", None):
            scale = self._scale or ("gpu" if wanted.gpus else "cpu")
            return planned(scale, nodes=wanted.nodes, gpus=wanted.gpus, cores=wanted.cores)

        torch = device.import_torch()
        cpu = torch.device("cpu")
        here = device.environment(cpu)
        if self._scale not in ("gpu", "multi") or not wanted.gpus:
            return self._experiment.plan(self._scale, cpu, here, None).cases
        unknown_gpu = here.model_copy(
            update={"kind": "cuda", "memory": None, "compute_capability": None, "caches": {}, "slurm": None}
        )
        return self._experiment.plan(self._scale, torch.device("cuda", 0), unknown_gpu, None).cases

    def describe(self, *names: str) -> None:
        """Print what the named cases are; of all but the size sweeps if none is named.

        Raises:
            EfflabError: an unknown case.
        """
        cases = self.cases()
        for name in names:
            if name not in cases:
                raise unknown("describe: case", name, cases)
        print(self._topic.describe(cases, names))

    def predict(
        self,
        values: Mapping[str, str] | None = None,
        limits: Mapping[str, str] | None = None,
        *,
        calibration: Mapping[str, str] | None = None,
        note: str = "",
    ) -> None:
        """Commit to a prediction. It goes into the lab book and cannot be changed.

        Args:
            values: case to its value with the unit: {"matmul-large": "80 ms"}.
            limits: case to what limits it, one of the topic's: "overhead", "memory" or "compute" on the roofline.
            calibration: what the formulas will take from the measurement, to its value: on the roofline the ceilings
                "copy" (as "40 GB/s"), "peak" (as "200 GFLOP/s") and "overhead" (as "5 µs").
            note: how you got there, for yourself.

        Raises:
            EfflabError: an unknown case, limit or name, a number without unit or not greater than zero, results
                that were shown already, or a lab book that cannot be written.
        """
        if self._seen:
            raise EfflabError("predict: the results were shown already. Make a new Lab to predict another run.")
        values, limits, calibration = dict(values or {}), dict(limits or {}), dict(calibration or {})
        cases = self.cases()
        if not values and not limits and not calibration:
            raise EfflabError(f"predict: give at least one value, such as {{{self._example(cases)}}}.")
        if calibration and self._record is not None:
            names = ", ".join(self._topic.CALIBRATION)
            raise EfflabError(f"predict: these are measured already: {names}. Predict the cases now.")
        outputs: dict[str, tuple[float, str]] = {}
        for case, written in values.items():
            if case not in cases:
                raise unknown("predict: case", case, cases)
            metric, unit = self._measures[case]
            outputs[f"{case}.{metric}"] = (_positive(written, unit, f"predict: {metric} of {case}"), unit.symbol)
        for case, limit in limits.items():
            if case not in cases:
                raise unknown("predict: case", case, cases)
            if limit not in self._topic.LIMITS:
                raise unknown(f"predict: limit of {case}", limit, self._topic.LIMITS)
            outputs[f"{case}.limiting_factor"] = (float(self._topic.LIMITS.index(limit)), "")
        for name, written in calibration.items():
            if name not in self._topic.CALIBRATION:
                raise unknown("predict: calibration", name, self._topic.CALIBRATION)
            what, unit = self._topic.CALIBRATION[name]
            value = _positive(written, unit, f"predict: {name}")
            if what in SHARES and value >= 1:
                raise EfflabError(
                    f"predict: {name}: {written!r} is {value:.0%}, and a share lies below 100%. Write '5%' for 0.05."
                )
            outputs[f"{CALIBRATED}{name}.{what}"] = (value, unit.symbol)
        every = self._outputs | {name: value for name, (value, _) in outputs.items()}
        together = sum(value for name, value in every.items() if name.endswith(".share"))
        if together > 1:
            raise EfflabError(
                f"predict: the shares add up to {together:.0%}, and they are parts of one whole. Lower some of them."
            )
        inputs: dict[str, records.Scalar] = {"mode": self.mode}
        if self._replayed is not None:
            inputs["record"] = self._replayed.id
        elif self._record is not None:
            inputs["record"] = self._record.id
        prediction = Prediction.new(self.topic, outputs, source="lab", note=note, inputs=inputs)
        self.labbook.save_prediction(prediction)
        self._committed.append(prediction.id)
        self._outputs |= {name: value for name, (value, _) in outputs.items()}
        counts = ((len(values) + len(calibration), "value"), (len(limits), "limit"))
        said = " and ".join(f"{n} {word}{'s' if n > 1 else ''}" for n, word in counts if n)
        print(f"Committed to your lab book: {said}.")

    def _example(self, cases: Mapping[str, Any]) -> str:
        """A prediction as a person would write it, for error messages."""
        case = next(iter(cases), "case")
        unit = self._measures[case][1] if case in self._measures else SECOND
        return f"'{case}': '{'80 ms' if unit is SECOND else f'2 {unit.example()}'.strip()}'"

    # Measure

    def measure(self) -> None:
        """Measure the experiment here or in a job, or load the recorded run under its banner.

        In submit mode it waits for the job. When it is stopped, the job goes on, and calling it again waits on.

        Raises:
            EfflabError: no prediction is committed yet, or the run failed; says what is kept.

        The cases' results stay hidden until `reconcile`, so that they can be predicted from what `calibration` shows.
        """
        if not self._outputs:
            raise EfflabError(
                "measure: commit to a prediction first, with lab.predict(...). One that is made after the "
                "measurement proves nothing."
            )
        if self._record is not None:
            raise EfflabError("measure: this lab has measured already. Make a new Lab to measure again.")
        if self._replayed is not None:
            print(self._topic.banner(self._replayed))
            self._record = self._replayed
        elif self._wanted is not None:
            self._record, self._path = self._submit()
            print(f"Measured: {len(self._record.samples)} samples, kept in your lab book: {self._path}")
        else:
            from efflab.experiments import runner

            self._record, self._path = runner.run(
                self._experiment,
                scale=self._scale,
                device=self._device,
                out=self.labbook.path / "records",
                predictions=self._committed,
                # What a case measured is not shown yet.
                report=lambda line: print(line.partition(": ")[0] if line.startswith("[") else line, flush=True),
            )
            print(f"Measured: {len(self._record.samples)} samples, kept in your lab book: {self._path}")
        if said := disturbed(self._record):
            print(said)
        for line in self._topic.missing(self._record):
            print(f"Not in it: {line}")

    def _submit(self) -> tuple[Record, Path]:
        """The record of a job, submitted now unless an earlier call was stopped while it waited."""
        if self._job is None:
            wanted = dataclasses.replace(self._wanted, predictions=tuple(self._committed))
            self._job = submit.submit(wanted, self.labbook)
            print(f"Submitted: job {self._job.id}; its script and log: {self._job.folder}")
        # What a case measured is not shown yet.
        state = self._job.wait(lambda line: print(line, flush=True), results=False)
        try:
            found = self._job.collect(state=state, results=False)
        except submit.JobFailed:
            self._job = None  # it is submitted again
            raise
        if said := self._job.unused(found[0]):
            print(said)
        self._job = None
        return found

    def record(self) -> Record:
        """The record of this run.

        Raises:
            EfflabError: nothing is measured yet.
        """
        record = self._measured()
        self._seen = True
        return record

    def _measured(self) -> Record:
        if self._record is None:
            raise EfflabError(f"{self!r}: nothing is measured yet. Call lab.predict(...), then lab.measure().")
        return self._record

    def calibration(self) -> None:
        """Print what the formulas take from this measurement, beside what you predicted of it.

        On the roofline these are the device's ceilings.

        Raises:
            EfflabError: nothing is measured yet.
        """
        record = self._measured()
        print(self._topic.calibration_text(record))
        found = self._topic.calibration(record)
        rows = []
        for name, (what, unit) in self._topic.CALIBRATION.items():
            yours = self._outputs.get(f"{CALIBRATED}{name}.{what}")
            measured = found.get(name)
            if yours and measured:
                said = [f"{v:.2%}" if what in SHARES else show(v, unit) for v in (yours, measured)]
                rows.append([name, *said, percent(error(yours, measured))])
        if rows:
            print()
            print(columns(["", "you", "from this run", "your error"], rows, (1, 2, 3)))

    # Reconcile

    def reconcile(self) -> None:
        """Print your prediction, the formula's and the measurement in one table, with why they part, and the energy.

        Raises:
            EfflabError: nothing is measured yet.
        """
        record = self._measured()
        rows = self._topic.points(record)
        yours = {tuple(name.rpartition(".")[::2]): value for name, value in self._outputs.items()}
        limited = any(what == "limiting_factor" for _, what in yours)
        table, reasons, factors = [], [], []
        for case in dict.fromkeys(case for case, _ in yours if not case.startswith(CALIBRATED)):
            its = sorted((r for r in rows if r.case == case), key=lambda r: (case, r.metric) not in yours)
            row = next(iter(its), None)  # of several numbers of a case the one that was predicted
            if row is None:
                table.append([case, "", "", "", "not measured", "", "", ""])
                continue
            value, limit = yours.get((case, row.metric)), yours.get((case, "limiting_factor"))
            said = self._topic.LIMITS[int(limit)] if limit is not None else ""
            if value is not None:
                factors.append(max(value / row.measured, row.measured / value))
            table.append(
                [
                    case,
                    said and f"{said} {'✓' if said == row.regime else f'({row.regime})'}",
                    *(
                        "" if v is None else f"{v:.1%}" if row.metric in PERCENT else show(v, row.unit)
                        for v in (value, row.predicted, row.measured)
                    ),
                    percent(error(value, row.measured)) if value is not None else "",
                    percent(row.error),
                    energy_cell(record, row),
                ]
            )
            reasons.append(f"{case}: {row.explanation}")
        if not table:
            raise EfflabError("reconcile: you predicted no case. Commit to values with lab.predict(...) first.")
        head = ["case", "your limit", "you", "formula", "measured", "your error", "formula's error", "energy"]
        texts = {"your limit": limited, "energy": any(r[-1] for r in table)}
        kept = [i for i, name in enumerate(head) if texts.get(name, True)]
        head, table = [head[i] for i in kept], [[r[i] for i in kept] for r in table]
        self._seen = True
        print(columns(head, table, range(head.index("you"), len(head))))
        if reasons:
            print("\nWhy the formula and the measurement part:")
            print("\n".join(reasons))
        if factors:
            off = show(records.median(factors), digits=3 if records.median(factors) < 1.1 else 2)
            print(f"\nYour predictions are off by a factor of {off} (median of {len(factors)}).")
        print(f"\n{energy_text(record)}")
        if (said := disturbed(record)).endswith(AGAIN):
            print(f"\n{said}")

    def table(self) -> None:
        """Print every case of the run: predicted, measured, and why they part; and what energy it took."""
        print(f"{self._topic.text(self.record())}\n\n{energy_text(self.record())}")

    def evidence(self, *names: str) -> None:
        """Print the numbers behind the named cases: on the roofline what limits them, by three methods.

        Raises:
            EfflabError: nothing is measured yet, or an unknown case.
        """
        record = self.record()
        timed = {r.case: r for r in self._topic.points(record) if r.metric == "time"}
        for name in names:
            print(self._topic.evidence(record, name))
            if name in timed and (said := energy_evidence(record, timed[name])):
                print(said)

    regimes = evidence  # the roofline lab's word

    def sweep(self, series: str) -> None:
        """Print the cases that differ in one size only, from the least work to the most.

        Args:
            series: such as "matmul by size"; an unknown name prints what there is in an error.

        Raises:
            EfflabError: nothing is measured yet, or no series has that name.
        """
        print(self._topic.sweep(self.record(), series))

    def compare(self, slow: str, fast: str) -> None:
        """Print how much faster one case is than another, predicted and measured.

        Raises:
            EfflabError: nothing is measured yet, or a case that is unknown or was not measured.
        """
        print(self._topic.compare(self.record(), slow, fast))

    def trace(self) -> None:
        """Write a trace of a few steps into the lab book, and print how to open it. In replay there is none.

        A trace holds every operator with its beginning and end; the profiling lab writes one of its loop with all
        faults and without any.

        Raises:
            EfflabError: nothing is measured yet, this lab has no trace, or the file cannot be written.
        """
        write = getattr(importlib.import_module(f"efflab.experiments.{self.topic}"), "trace", None)
        if write is None:
            raise EfflabError(f"trace: the lab on {self.topic} has none.")
        self.record()  # a trace shows results
        if self._replayed is not None or self._wanted is not None:
            what = "A recorded run" if self._replayed is not None else "A job's record"
            print(f"{what} has no trace. Live, this call writes one of a few steps of both loops.")
            return
        path = self.labbook.path / "traces" / f"{records.identifier(self.topic, 'trace')}.json.gz"
        write(path, self._scale, self._device)
        print(
            f"Trace: {path} ({show(path.stat().st_size, BYTE)})\n"
            "To open it, choose 'Open trace file' on ui.perfetto.dev, or 'Load' in chrome://tracing, a page of Chrome."
        )

    def show(self, kind: str | None = None) -> Any:
        """A picture of the run, one of those that the topic has; its own if none is named.

        Raises:
            EfflabError: nothing is measured yet, an unknown picture, or matplotlib is missing.
        """
        from efflab import plots

        return plots.draw(self.record(), kind)


def _positive(written: str, unit: Unit, name: str) -> float:
    value = parse(written, unit, name)
    if not (value > 0 and math.isfinite(value)):
        raise EfflabError(f"{name}: {written!r} is not greater than zero.")
    return value


def disturbed(record: Record) -> str:
    """One sentence on the timed cases that are wide or disturbed, what calibrates included; empty where there is none.

    What counts, and how many may be, is the rule by which the check of one's own record counts.
    """
    module = topic_module(record.topic)
    kept = [
        s
        for s in record.samples
        if s.point.get("role") != "ceiling" and not module.scatters(record, str(s.point.get("case")))
    ]
    timed = [s for s in kept if s.metric == "time" and s.status == "ok" and median(s.values) > 0]
    named = sorted({str(s.point.get("case")) for s in timed if not _steady(record, [s])})
    if not named:
        return ""
    cases = {str(s.point.get("case")) for s in timed}
    some = ", ".join(named[:4]) + (", …" if len(named) > 4 else "")
    every = {str(s.point.get("case")) for s in kept}
    kind = "cases" if cases == every else "timed cases"
    said = f"Disturbed while it was measured: {len(named)} of {len(cases)} {kind} ({some})."
    if rested := [case for case in named if module.calibrates(record, case)]:
        said += f" Predictions rest on {', '.join(rested)}."
    if set(module.BASE) & set(named) or not _quiet(record, timed):
        return f"{said} {AGAIN}"
    return f"{said} The record keeps their warnings."


def _quiet(record: Record, timed: list[Sample]) -> bool:
    """At most as many of the timed cases are disturbed as may be, of all and of those that are predicted."""
    predicted = [s for s in timed if s.point.get("role") not in ("calibration", "bandwidth")]
    return all(_steady(record, samples) for samples in (timed, predicted))


def _steady(record: Record, samples: list[Sample]) -> bool:
    """The check of one's own record finds these samples steady; of one sample, it is neither wide nor disturbed."""
    from efflab.exercises.checks import NotYet
    from efflab.exercises.checks.records import steady

    try:
        steady(record, samples)
    except NotYet:
        return False
    return True
