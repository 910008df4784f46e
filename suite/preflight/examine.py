"""All checks of a command line, in one list."""

from collections import Counter
from pathlib import Path

from eval.errors import KeelBenchError
from suite.plan import RunPlan
from suite.preflight.estimates import RUN_BYTES, check_disk, gpu_rates, rates
from suite.preflight.findings import Finding, Findings
from suite.preflight.inputs import Inputs
from suite.preflight.machine import Gpu, check_back_end, check_device, check_memory, gpus
from suite.preflight.points import CommandLine
from suite.preflight.services import check_judge, check_tracking
from suite.preflight.shapes import Shape, shape_of
from suite.preflight.weights import Place, find_weights, gate_named
from suite.preflight.work import Stage, remaining
from suite.stages.models import aligning_samples


def examine(asked: CommandLine, *, fetch: bool) -> list[Finding]:
    """Everything that can be found out about the runs before the first of them starts.

    Args:
        fetch: download a data set that is only on the hub, as its run would; model weights are never downloaded.
    """
    return Examination(asked, fetch=fetch).findings.found


class Examination:
    """The checks of all points, each thing looked at once however many points share it."""

    def __init__(self, asked: CommandLine, *, fetch: bool):
        self.asked, self.findings = asked, Findings()
        self.inputs = Inputs(self.findings, fetch=fetch)
        self.gpus: list[Gpu] = gpus() if asked.local else []
        self.places: dict[str, Place] = {}  # of weights that were found
        self.wanted: set[str] = set()  # names of all weights
        self.memory: dict[str, tuple[int, Finding]] = {}  # each model's hungriest run
        self.work: dict[str, set[Stage]] = {}  # by model
        self.unknown = 0  # runs whose work cannot be told
        self._configurations()
        plans = [point.plan for point in asked.points if point.plan is not None]
        for plan in plans:
            self._run(plan)
        for _, finding in self.memory.values():
            self.findings.add(finding)
        if not asked.local:
            self.findings.add(Finding("machine", "note", "the jobs run elsewhere; each looks at its own machine"))
        if plans:
            self._disk(plans[0], len(plans))
            self._time(plans[0])

    def _configurations(self) -> None:
        points = self.asked.points
        good = sum(point.plan is not None for point in points)
        if good:
            self.findings.add(Finding("configuration", "ok", f"{good} run{'s' if good > 1 else ''}"))
        for problem, count in Counter(point.problem for point in points if point.plan is None).items():
            first = next(point for point in points if point.problem == problem)
            where = f" ({count} of {len(points)} runs, such as {' '.join(first.overrides)})" if len(points) > 1 else ""
            self.findings.fail("configuration", problem + where)

    def _run(self, plan: RunPlan) -> None:
        data, prompts = self.inputs.data(plan), self.inputs.prompts(plan)
        model, align = plan.model, plan.model.align

        def look() -> str:
            with gate_named(model.source):
                place = self.places[model.source] = find_weights(model.source, model.revision)
            return place.said

        self.findings.once((model.source, model.revision), f"weights of {model.name}", look)
        if align is not None:
            self.findings.once(repr(align), f"alignment {align.name}", lambda: f"{len(aligning_samples(align))} rows")
        self.inputs.method(plan)
        judge_model = self._judge(plan)
        self.wanted |= {model.source, judge_model} - {""}
        self.findings.once(repr(plan.tracking), "W&B", lambda: check_tracking(plan.tracking))
        shape, judge_shape = self._shape(model.source), self._shape(judge_model)
        if self.asked.local:
            self._machine(plan, shape, judge_shape)
            self.inputs.tasks(plan)
        if data is None or shape is None:
            self.unknown += 1
            return
        place = self.places.get(model.source)
        try:
            left = remaining(plan, shape, place.folder if place else None, data, prompts, judge_shape)
        except KeelBenchError:  # what is wrong with it has been told
            self.unknown += 1
            return
        self.work.setdefault(model.source, set()).update(left)

    def _judge(self, plan: RunPlan) -> str:
        """The judge checked; the name of its model where that runs in this process, else ""."""
        judge = plan.judge
        here = getattr(judge, "server", "none") is None
        name = str(getattr(judge, "model", "")) if here else ""

        def look() -> str:
            with gate_named(name):
                told, place = check_judge(judge)
            if place is not None:
                self.places[name] = place
            return told

        self.findings.once(repr(judge), f"judge {judge.name}", look)
        return name

    def _shape(self, source: str) -> Shape | None:
        place = self.places.get(source)
        return shape_of(source, place.folder if place else None)

    def _machine(self, plan: RunPlan, shape: Shape | None, judge: Shape | None) -> None:
        device = plan.compute.device
        self.findings.once(device, "device", lambda: check_device(device, self.gpus))
        self.findings.once(
            repr(plan.backend), f"back end {plan.backend.name}", lambda: check_back_end(plan.backend)
        )  # fmt: skip
        need, finding = check_memory(plan, shape, judge, self.gpus)
        if need >= self.memory.get(plan.model.name, (0, finding))[0]:
            self.memory[plan.model.name] = (need, finding)

    def _disk(self, first: RunPlan, runs: int) -> None:
        stages = {stage for mine in self.work.values() for stage in mine}
        self.findings.add(check_disk(first.paths.cache, "the cache", sum(s.output_bytes for s in stages)))
        self.findings.add(check_disk(self.asked.runs, "the runs", RUN_BYTES * runs))
        fetched = sum(place.download_bytes for place in self.places.values())
        for source in self.wanted - self.places.keys():  # not here, and no hub says how large they are
            shape = self._shape(source)
            if shape is not None and not source.startswith("embedded:"):
                fetched += 2 * shape.parameters  # bfloat16, as published
        if fetched:
            from huggingface_hub import constants

            self.findings.add(check_disk(Path(constants.HF_HUB_CACHE), "the hub's cache", fetched))

    def _time(self, first: RunPlan) -> None:
        stages = [stage for mine in self.work.values() for stage in mine]
        speed = rates(first.compute.device, self.gpus, first.compute.threads) if self.asked.local else gpu_rates("A100")
        shapes = {shape for shape in map(self._shape, self.work) if shape is not None}
        if self.asked.local and len(shapes) == 1:
            speed.calibrate(first.paths.cache, next(iter(shapes)).block_parameters)
        said = f"{speed.about(stages)} ({speed.source}; rough), {len(stages)} stages to compute"
        if any(s is not None and s.parameters > 1e9 for s in map(self._shape, self.work)) and not self.gpus:
            said += f"; {gpu_rates('A100').about(stages)} on one A100 (an assumption, not measured)"
        if not stages and not self.unknown:
            said = "seconds: everything is in the cache"
        if self.unknown:
            said += f"; without {self.unknown} of {len(self.asked.points)} runs, which could not be reckoned"
        self.findings.add(Finding("time", "note", said))
