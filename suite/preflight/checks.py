"""The checks that all entry points share, each thing looked at once however many points share it."""

from collections import Counter
from pathlib import Path
from typing import Any

from eval.judges import Judge
from suite.plan import BackendSpec, ModelSpec, TrackingSpec, VllmSpec
from suite.preflight.estimates import RUN_BYTES, check_disk
from suite.preflight.findings import Finding, Findings
from suite.preflight.inputs import Inputs
from suite.preflight.loads import Load
from suite.preflight.locks import check_locks
from suite.preflight.machine import Gpu, check_back_end, check_device, check_judge_memory, check_memory, gpus
from suite.preflight.points import CommandLine
from suite.preflight.services import check_judge, check_tracking
from suite.preflight.shapes import Shape, shape_of
from suite.preflight.weights import Place, find_weights, gate_named
from suite.stages.models import aligning_samples


class Checks:
    """What has been found of a command line, and the means to look."""

    def __init__(self, asked: CommandLine[Any], *, fetch: bool):
        """
        Args:
            fetch: download a data set that is only on the hub, as its run would; model weights are never downloaded.
        """
        self.asked, self.findings = asked, Findings()
        self.inputs = Inputs(self.findings, fetch=fetch)
        self.gpus: list[Gpu] = gpus() if asked.local else []
        self.places: dict[str, Place] = {}  # of weights that were found
        self._wanted: set[str] = set()  # names of all weights
        self._memory: dict[str, tuple[int, Finding]] = {}  # each model's hungriest run

    def configurations(self) -> None:
        points = self.asked.points
        good = len(self.asked.plans)
        if good:
            self.findings.add(Finding("configuration", "ok", f"{good} run{'s' if good > 1 else ''}"))
        for problem, count in Counter(point.problem for point in points if point.plan is None).items():
            first = next(point for point in points if point.problem == problem)
            where = f" ({count} of {len(points)} runs, such as {' '.join(first.overrides)})" if len(points) > 1 else ""
            self.findings.fail("configuration", problem + where)

    def weights(self, model: ModelSpec) -> Shape | None:
        """The model's weights and the data of its alignment; its sizes where they are known."""

        def look() -> str:
            with gate_named(model.source):
                place = self.places[model.source] = find_weights(model.source, model.revision)
            return place.said

        self.findings.once((model.source, model.revision), f"weights of {model.name}", look)
        self._wanted.add(model.source)
        align = model.align
        if align is not None:
            self.findings.once(repr(align), f"alignment {align.name}", lambda: f"{len(aligning_samples(align))} rows")
        return self.shape(model.source)

    def judge(self, judge: Judge) -> Shape | None:
        """The judge; its model's sizes where that runs in this process and they are known."""
        here = getattr(judge, "server", "none") is None
        name = str(getattr(judge, "model", "")) if here else ""

        def look() -> str:
            with gate_named(name):
                told, place = check_judge(judge)
            if place is not None:
                self.places[name] = place
            return told

        self.findings.once(repr(judge), f"judge {judge.name}", look)
        self._wanted |= {name} - {""}
        return self.shape(name)

    def tracking(self, spec: TrackingSpec) -> None:
        self.findings.once(repr(spec), "W&B", lambda: check_tracking(spec))

    def shape(self, source: str) -> Shape | None:
        place = self.places.get(source)
        return shape_of(source, place.folder if place else None)

    def machine(self, load: Load, shape: Shape | None, judge: Shape | None) -> None:
        """Device, back end and memory, where the jobs run here."""
        if not self.asked.local:
            return
        device = load.compute.device
        self.findings.once(device, "device", lambda: check_device(device, self.gpus))
        if load.backend is not None:
            self._back_end(load.backend)
        need, finding = check_memory(load, shape, judge, self.gpus)
        self._remember(load.model.name, need, finding)

    def judge_alone(self, judge: Judge) -> None:
        """A judge of answers that are there already, and its memory."""
        shape = self.judge(judge)
        if self.asked.local and shape is not None:
            self._remember(judge.name, *check_judge_memory(judge, shape, self.gpus))

    def _back_end(self, backend: BackendSpec | VllmSpec) -> None:
        self.findings.once(repr(backend), f"back end {backend.name}", lambda: check_back_end(backend))

    def _remember(self, name: str, need: int, finding: Finding) -> None:
        if need >= self._memory.get(name, (0, finding))[0]:
            self._memory[name] = (need, finding)

    def told_machine(self) -> None:
        """Each model's memory, or that other machines will see."""
        for _, finding in self._memory.values():
            self.findings.add(finding)
        if not self.asked.local:
            self.findings.add(Finding("machine", "note", "the jobs run elsewhere; each looks at its own machine"))

    def disk(self, cache: Path, output_bytes: int, runs: int) -> None:
        """Room, and whether locks in the cache hold.

        Args:
            output_bytes: that the stages will leave in the cache.
            runs: how many folders of runs there will be.
        """
        self.findings.add(check_disk(cache, "the cache", output_bytes))
        for finding in check_locks(cache, at_once=self.asked.at_once, elsewhere=not self.asked.local):
            self.findings.add(finding)
        if runs:
            self.findings.add(check_disk(self.asked.runs, "the runs", RUN_BYTES * runs))
        fetched = sum(place.download_bytes for place in self.places.values())
        for source in self._wanted - self.places.keys():  # not here, and no hub says how large they are
            shape = self.shape(source)
            if shape is not None and not source.startswith("embedded:"):
                fetched += 2 * shape.parameters  # bfloat16, as published
        if fetched:
            from huggingface_hub import constants

            self.findings.add(check_disk(Path(constants.HF_HUB_CACHE), "the hub's cache", fetched))
