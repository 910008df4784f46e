"""What a sweep still has to compute: the run's own stage functions, led through the cache, computing nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from baselines.records import Sample, Scores
from eval.flops import Work
from eval.judges.model_judge import ModelJudge
from eval.records import Prompt
from suite.plan import ComputeSpec, LoraRecipe, ModelSpec, RunPlan
from suite.preflight.shapes import BYTES, Shape
from suite.stages.data import Data
from suite.stages.finetuning import Adapter, fine_tune_selection
from suite.stages.generation import complete
from suite.stages.models import LoadedModel, Weights, aligning_samples, prepare
from suite.stages.scoring import score
from suite.stages.selection import cut_size, select
from suite.storage.cache import MANIFEST, Entry, StageCache
from suite.storage.unfinished import Unfinished

CHARACTERS = 4.0  # of a token, in English
TEMPLATE = 30  # tokens that a chat template adds to a prompt, roughly
# Operations a parameter and token of scoring: forward 2, backward 2 for activations and 2 for the weights' gradients.
_SCORING = {"larf": 2.0, "representation_matching": 2.0, "gradsafe": 6.0, "bi_anchoring": 6.0, "vector_ablation": 2.0}


class NotComputedError(Exception):
    """A stage that is not in the cache."""

    def __init__(self, stage: str):
        self.stage = stage
        super().__init__(stage)


# Not there; or there and damaged, which the run finds out by checksum and computes again.
_GONE = (NotComputedError, OSError, ValueError, TypeError, LookupError, pa.ArrowException)


class Lookup(StageCache):
    """A cache that finds entries and computes none. Checksums are left to the run: reading gigabytes takes long."""

    def resumable_entry(
        self,
        stage: str,
        version: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path, Unfinished], int | Work],
        label: str = "",
    ) -> Entry:
        """
        Raises:
            NotComputedError: it is not there.
        """
        key = self.key(stage, version, inputs)
        path = self.root / stage / key
        if not (path / MANIFEST).is_file():
            raise NotComputedError(stage)
        return Entry(stage, key, path, cached=True)


@dataclass(frozen=True)
class Stage:
    """Work that is left. Equal stages of several points are computed once."""

    name: str
    identity: str
    flops: float = 0.0
    tokens: int = 0  # generated or trained on
    output_bytes: int = 0


def remaining(
    plan: RunPlan,
    shape: Shape,
    folder: Path | None,
    data: Data,
    prompts: Mapping[str, Sequence[Prompt]],
    judge: Shape | None,
) -> set[Stage]:
    """The stages that ``plan`` would compute now.

    Args:
        folder: of a model on disk; None for an embedded one, or one that is still to be fetched.
    """
    walk = _Walk(plan, shape, data)
    cache = Lookup(plan.paths.cache)
    weights = walk.weights(folder, cache)
    model = None if weights is None else LoadedModel(weights, plan.model, plan.compute)
    selected = walk.selected(model, cache)
    adapter = walk.adapter(model, selected, cache)
    for name, asked in prompts.items():
        done = model is not None and (adapter is not None or not plan.method.fine_tunes)
        if not (done and walk.answered(model, adapter, name, asked, cache)):
            walk.answers(name, asked, judge)
    for task, spec in plan.utility.tasks.items():
        flops = walk.passes * 2 * 1000 * (spec.limit or 1000) * shape.block_parameters
        walk.add("utility", f"{walk.tuned}{plan.evaluation.system}{task}{spec}", flops)
    return walk.stages


def prepared(
    model: ModelSpec, compute: ComputeSpec, shape: Shape, folder: Path | None, cache: StageCache
) -> tuple[Weights | None, set[Stage]]:
    """A model's weights as they lie in the cache; None where they still have to be fetched, made or aligned, and the
    stages that this takes."""
    spec = model if folder is None else replace(model, source=str(folder))
    if folder is None and not spec.source.startswith("embedded:"):
        gap = "fetch"
    else:
        try:
            return prepare(spec, compute, cache), set()
        except NotComputedError as missing:
            gap = missing.stage
    identity, size = repr((model, cache.root)), shape.parameters * BYTES.get(spec.dtype, 4)
    left = set()
    if gap == "model":
        left.add(Stage("model", identity, 20.0 * shape.parameters, output_bytes=size))
    if spec.align is not None:
        tokens = int(_tokens(aligning_samples(spec.align)) * spec.align.recipe.epochs)
        left.add(Stage("alignment", identity, 4.0 * tokens * shape.block_parameters, tokens, size))
    return None, left


class _Walk:
    """One plan's way through the cache. What is found decides the next stage's key; behind a gap all is left to do."""

    def __init__(self, plan: RunPlan, shape: Shape, data: Data):
        self.plan, self.shape, self.data = plan, shape, data
        self.stages: set[Stage] = set()
        self.model = repr((plan.model, plan.paths.cache))
        seed = plan.seed if plan.method.uses_seed else None
        self.scored = repr((self.model, data.key, plan.method, plan.compute.max_length, seed))
        trained = (plan.selection, plan.train, plan.regularizer, plan.seed)
        self.tuned = f"{self.scored}{trained}" if plan.method.fine_tunes else f"{self.model}{plan.method}"
        self.passes = 1 if plan.method.second_system is None else 2  # of a step of an answer

    def add(self, name: str, identity: str, flops: float, tokens: int = 0, output_bytes: int = 0) -> None:
        self.stages.add(Stage(name, identity, float(flops), tokens, output_bytes))

    def weights(self, folder: Path | None, cache: StageCache) -> Weights | None:
        found, left = prepared(self.plan.model, self.plan.compute, self.shape, folder, cache)
        self.stages |= left
        return found

    def selected(self, model: LoadedModel | None, cache: StageCache) -> Sequence[Sample] | None:
        """The samples that are trained on; None where the scores that say so are not there."""
        plan, samples = self.plan, self.data.samples
        if not plan.method.scores:
            return samples if plan.method.fine_tunes else []
        if model is not None:
            try:
                scores: Scores = score(
                    plan.method, model, self.data, seed=plan.seed, compute=plan.compute, cache=cache
                ).scores
                return self.data.chosen(select(plan.selection, scores))
            except _GONE:
                pass
        if plan.method.uses_model:
            per_token = _SCORING.get(plan.method.name, 2.0)
            if plan.method.name == "seal":  # safe samples beside the scored ones, each through forward and backward
                per_token = 8.0 * float(getattr(plan.method, "epochs", 1))
            tokens = int(_tokens(samples))
            self.add("scoring", self.scored, per_token * tokens * self.shape.block_parameters)
        return None

    def adapter(
        self, model: LoadedModel | None, selected: Sequence[Sample] | None, cache: StageCache
    ) -> Adapter | None:
        plan = self.plan
        if not plan.method.fine_tunes:
            return None
        if model is not None and selected is not None and cache.root.is_dir():
            try:
                return fine_tune_selection(
                    model, selected, plan.train,
                    regularizer=plan.regularizer, seed=plan.seed, cache=cache, every=plan.evaluation.every,
                )  # fmt: skip
            except _GONE:
                pass
        samples = self.data.samples
        if selected is None:
            n = len(samples) if plan.selection.name == "all" else cut_size(plan.selection, len(samples))
            n = len(samples) - n if plan.selection.name == "drop_top" else n
            once = _tokens(samples) * n / max(1, len(samples))
        else:
            once = _tokens(selected)
        tokens = int(once * plan.train.epochs)
        if isinstance(plan.train, LoraRecipe):
            passes, size = 4, 4 * self.shape.lora_parameters(plan.train.rank, plan.train.target_modules)
        else:  # the weights' own gradients, too, and a whole model on disk
            passes, size = 6, self.shape.parameters * BYTES.get(plan.model.dtype, 4)
        self.add("fine-tuning", self.tuned, passes * tokens * self.shape.block_parameters, tokens, size)
        return None

    def answered(
        self, model: LoadedModel | None, adapter: Adapter | None, name: str, asked: Sequence[Prompt], cache: StageCache
    ) -> bool:
        assert model is not None
        plan = self.plan
        try:
            complete(
                model, adapter, {name: asked},
                evaluation=plan.evaluation, backend=plan.backend, cache=cache, method=plan.method,
            )  # fmt: skip
        except _GONE:
            return False
        return True

    def answers(self, name: str, asked: Sequence[Prompt], judge: Shape | None) -> None:
        """Completions that are missing, and their verdicts where a model in this process gives them."""
        plan = self.plan
        identity = f"{self.tuned}{name}{len(asked)}{plan.evaluation}{plan.backend}"
        written = len(asked) * plan.evaluation.max_new_tokens  # reading a prompt is quick beside it
        self.add("answering", identity, self.passes * 2 * written * self.shape.block_parameters, written)
        if judge is not None and isinstance(plan.judge, ModelJudge):
            questions = written + 300 * len(asked)
            self.add("judging", f"{identity}{plan.judge}", 2 * questions * judge.block_parameters)


def _tokens(samples: Sequence[Sample]) -> float:
    return sum((len(s.prompt) + len(s.response)) / CHARACTERS + TEMPLATE for s in samples)
