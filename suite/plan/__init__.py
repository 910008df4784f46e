"""A run as typed values: the only place below the entry points that sees a Hydra configuration.

``plan_from_config`` reads every key it is given and refuses those that nothing reads, so that a setting cannot be
ignored in silence.
"""

from suite.plan.read import (
    benchmark_source,
    dataset_spec,
    judge_of,
    method_of,
    model_spec,
    paths_spec,
    plan_from_config,
    recipe_of,
)
from suite.plan.specs import (
    AlignSpec,
    BackendSpec,
    BenchmarkSource,
    ComputeSpec,
    DatasetSpec,
    EvalSpec,
    LoraRecipe,
    ModelSpec,
    PathsSpec,
    Recipe,
    RunPlan,
    SelectionSpec,
    TrackingSpec,
    UtilitySpec,
    UtilityTaskSpec,
    VllmSpec,
)
from suite.plan.typed import build, checked, refuse_unknown

__all__ = [
    "AlignSpec",
    "BackendSpec",
    "BenchmarkSource",
    "ComputeSpec",
    "DatasetSpec",
    "EvalSpec",
    "LoraRecipe",
    "ModelSpec",
    "PathsSpec",
    "Recipe",
    "RunPlan",
    "SelectionSpec",
    "TrackingSpec",
    "UtilitySpec",
    "UtilityTaskSpec",
    "VllmSpec",
    "benchmark_source",
    "build",
    "checked",
    "dataset_spec",
    "judge_of",
    "method_of",
    "model_spec",
    "paths_spec",
    "plan_from_config",
    "recipe_of",
    "refuse_unknown",
]
