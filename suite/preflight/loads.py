"""A model and all that one run does with it, for the machine's memory."""

from dataclasses import dataclass

from baselines.method import Method
from eval.judges import Judge
from suite.plan import BackendSpec, ComputeSpec, ModelSpec, Recipe, RunPlan, VllmSpec


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is None or empty is not done."""

    model: ModelSpec
    compute: ComputeSpec
    methods: tuple[Method, ...] = ()  # that score by it
    reads_states: bool = False  # behind all its blocks, as FlowLens does
    train: Recipe | None = None
    backend: BackendSpec | VllmSpec | None = None  # by which it answers
    judge: Judge | None = None  # of its answers


def load_of(plan: RunPlan) -> Load:
    """What a run of the main pipeline does."""
    return Load(
        model=plan.model,
        compute=plan.compute,
        methods=(plan.method,) if plan.method.scores and plan.method.uses_model else (),
        train=plan.train if plan.method.fine_tunes else None,
        backend=plan.backend,
        judge=plan.judge,
    )
