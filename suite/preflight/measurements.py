"""What the entry points beside the main pipeline ask of weights, servers and machine; each reads its own inputs."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from eval.errors import KeelBenchError
from suite.auditing.plan import AuditPlan
from suite.diversity import DiversityPlan
from suite.drift.plan import DriftPlan
from suite.flowlens.plan import FlowLensPlan
from suite.judging.plan import RejudgePlan
from suite.preflight.checks import Checks
from suite.preflight.estimates import check_disk
from suite.preflight.loads import Load
from suite.preflight.work import Lookup, Stage, prepared
from suite.purify.plan import PurifyPlan
from suite.quality.plan import QualityPlan
from suite.storage.cache import StageCache

P = TypeVar("P")


def of_purify(checks: Checks, plans: Sequence[PurifyPlan]) -> set[Stage]:
    """Checks all points; returns what has to be made before their models can be loaded, as every function here does."""
    from suite.purify.inputs import check

    def inputs(plan: PurifyPlan) -> str:
        told = checks.inputs.only_on_hub(plan.dataset.name, plan.dataset.source, plan.paths.data)
        if told and not checks.inputs.fetch:
            return told
        return f"{len(check(plan, files_only=True).index.scored):,} rows to score"

    left: set[Stage] = set()
    for plan in plans:
        scoring = tuple(m for m in plan.methods.values() if m.uses_model)
        for model in plan.models:
            answers = plan.verify or (model == plan.scoring_model and plan.check.prompts > 0)
            left |= _loaded(
                checks,
                plan.paths.cache,
                Load(
                    model=model,
                    compute=plan.compute,
                    methods=scoring,
                    train=plan.train if plan.verify and model == plan.model else None,
                    backend=plan.backend if answers else None,
                    judge=plan.judge if plan.verify and model == plan.model else None,
                ),
            )
        if plan.benchmarks and (plan.verify or plan.check.prompts):
            checks.inputs.prompts(plan.benchmarks, plan.evaluation.limit, plan.paths.data)
        _inputs(checks, plan, inputs)
        checks.tracking(plan.tracking)
        path = _file(plan)
        if path is not None and plan.out.absolute().parent.is_dir():
            checks.findings.add(check_disk(plan.out.absolute().parent, "out", 2 * path.stat().st_size))
    for out, count in Counter(plan.out.absolute() for plan in plans).items():
        if count > 1:
            checks.findings.fail("out", f"out={out} would be written by {count} runs; 'out=clean-${{keep}}.jsonl', say")
    return left


def _file(plan: PurifyPlan) -> Path | None:
    try:
        return plan.dataset.source.file(plan.dataset.name, plan.paths.data)
    except KeelBenchError:  # told by the check of the inputs
        return None


def of_quality(checks: Checks, plans: Sequence[QualityPlan]) -> set[Stage]:
    from suite.quality.run import check

    def inputs(plan: QualityPlan) -> str:
        mixture = check(plan, files_only=True)
        return f"{len(mixture.data.samples)} rows, {len(mixture.planted_ids)} of them planted"

    left: set[Stage] = set()
    for plan in plans:
        methods = tuple(m for m in plan.methods.values() if m.uses_model)
        left |= _loaded(
            checks, plan.paths.cache, Load(model=plan.model, compute=plan.compute, methods=methods)
        )  # fmt: skip
        if checks.inputs.data(plan.dataset, plan.paths.data) is not None:
            _inputs(checks, plan, inputs)
        checks.tracking(plan.tracking)
    return left


def of_flowlens(checks: Checks, plans: Sequence[FlowLensPlan]) -> set[Stage]:
    from suite.flowlens.run import check

    def inputs(plan: FlowLensPlan) -> str:
        return f"{len(check(plan, files_only=True))} prompts"

    left: set[Stage] = set()
    for plan in plans:
        left |= _states(checks, plan)
        if plan.dataset is None or checks.inputs.data(plan.dataset, plan.paths.data) is not None:
            _inputs(checks, plan, inputs)
    return left


def of_drift(checks: Checks, plans: Sequence[DriftPlan]) -> set[Stage]:
    from suite.drift.run import check

    def inputs(plan: DriftPlan) -> str:
        adapters, prompts = check(plan)
        return f"{len(adapters)} adapters, {len(prompts)} prompts"

    left: set[Stage] = set()
    for plan in plans:
        left |= _states(checks, plan)
        _inputs(checks, plan, inputs)
    return left


def _states(checks: Checks, plan: FlowLensPlan | DriftPlan) -> set[Stage]:
    """A model whose hidden states are read on benchmarks' prompts."""
    if plan.benchmarks:
        checks.inputs.prompts(plan.benchmarks, plan.limit, plan.paths.data)
    checks.tracking(plan.tracking)
    return _loaded(checks, plan.paths.cache, Load(model=plan.model, compute=plan.compute, reads_states=True))


def of_diversity(checks: Checks, plans: Sequence[DiversityPlan]) -> set[Stage]:
    for plan in plans:
        checks.inputs.data(plan.dataset, plan.paths.data)
        checks.tracking(plan.tracking)
    return set()


def of_audit(checks: Checks, plans: Sequence[AuditPlan]) -> set[Stage]:
    from suite.auditing.run import read_answers

    def inputs(plan: AuditPlan) -> str:
        answers, _ = read_answers(plan, StageCache(plan.paths.cache))
        return f"{sum(len(a.completions) for a in answers.values())} completions"

    for plan in plans:
        for judge in plan.judges.values():
            checks.judge_alone(judge)
        _inputs(checks, plan, inputs)
    return set()


def of_rejudging(checks: Checks, plans: Sequence[RejudgePlan]) -> set[Stage]:
    from suite.judging.rejudging import stored_answers

    for plan in plans:
        checks.judge_alone(plan.judge)
        for run in plan.runs:

            def answers(run: Path = run, cache: StageCache = StageCache(plan.paths.cache)) -> str:
                return f"{sum(len(a.prompts) for a in stored_answers(run, cache).values())} answers"

            checks.findings.once(run, f"run {run.name}", answers)
    return set()


def _loaded(checks: Checks, cache: Path, load: Load) -> set[Stage]:
    """Weights, judge and memory of one model's part."""
    shape = checks.weights(load.model)
    checks.machine(load, shape, checks.judge(load.judge) if load.judge is not None else None)
    if shape is None:
        return set()
    place = checks.places.get(load.model.source)
    try:
        return prepared(load.model, load.compute, shape, place.folder if place else None, Lookup(cache))[1]
    except KeelBenchError:  # what is wrong with it has been told
        return set()


def _inputs(checks: Checks, plan: P, read: Callable[[P], str]) -> None:
    checks.findings.once(repr(plan), "inputs", lambda: read(plan))
