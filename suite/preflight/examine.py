"""All checks of a command line of the main pipeline, in one list."""

from eval.errors import KeelBenchError
from suite.plan import RunPlan
from suite.preflight.checks import Checks
from suite.preflight.estimates import gpu_rates, rates
from suite.preflight.findings import Finding
from suite.preflight.loads import load_of
from suite.preflight.points import CommandLine
from suite.preflight.work import Stage, remaining


def examine(asked: CommandLine[RunPlan], *, fetch: bool) -> list[Finding]:
    """Everything that can be found out about the runs before the first of them starts.

    Args:
        fetch: download a data set that is only on the hub, as its run would; model weights are never downloaded.
    """
    return Examination(asked, fetch=fetch).checks.findings.found


class Examination:
    """The checks of all points, and what they leave to do."""

    def __init__(self, asked: CommandLine[RunPlan], *, fetch: bool):
        self.asked, self.checks = asked, Checks(asked, fetch=fetch)
        self.work: dict[str, set[Stage]] = {}  # by model
        self.unknown = 0  # runs whose work cannot be told
        self.checks.configurations()
        plans = asked.plans
        for plan in plans:
            self._run(plan)
        self.checks.told_machine()
        if plans:
            stages = {stage for mine in self.work.values() for stage in mine}
            self.checks.disk(plans[0].paths.cache, sum(s.output_bytes for s in stages), len(plans))
            self._time(plans[0])

    def _run(self, plan: RunPlan) -> None:
        checks, inputs = self.checks, self.checks.inputs
        data = inputs.data(plan.dataset, plan.paths.data)
        if plan.method.scores:
            inputs.selection(plan, data)
        prompts = inputs.prompts(plan.benchmarks, plan.evaluation.limit, plan.paths.data)
        shape = checks.weights(plan.model)
        inputs.method(plan.method)
        judge_shape = checks.judge(plan.judge)
        checks.tracking(plan.tracking)
        checks.machine(load_of(plan), shape, judge_shape)
        if self.asked.local:
            inputs.tasks(plan)
        if data is None or shape is None:
            self.unknown += 1
            return
        place = checks.places.get(plan.model.source)
        try:
            left = remaining(plan, shape, place.folder if place else None, data, prompts, judge_shape)
        except KeelBenchError:  # what is wrong with it has been told
            self.unknown += 1
            return
        self.work.setdefault(plan.model.source, set()).update(left)

    def _time(self, first: RunPlan) -> None:
        gpus = self.checks.gpus
        stages = [stage for mine in self.work.values() for stage in mine]
        speed = rates(first.compute.device, gpus, first.compute.threads) if self.asked.local else gpu_rates("A100")
        shapes = {shape for shape in map(self.checks.shape, self.work) if shape is not None}
        if self.asked.local and len(shapes) == 1:
            speed.calibrate(first.paths.cache, next(iter(shapes)).block_parameters)
        said = f"{speed.about(stages)} ({speed.source}; rough), {len(stages)} stages to compute"
        if any(s is not None and s.parameters > 1e9 for s in map(self.checks.shape, self.work)) and not gpus:
            said += f"; {gpu_rates('A100').about(stages)} on one A100 (an assumption, not measured)"
        if not stages and not self.unknown:
            said = "seconds: everything is in the cache"
        if self.unknown:
            said += f"; without {self.unknown} of {len(self.asked.points)} runs, which could not be reckoned"
        self.checks.findings.add(Finding("time", "note", said))
