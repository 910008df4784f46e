"""A purification as typed values, out of ``conf/purify.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.method import Method
from eval.errors import KeelBenchError, UnknownNameError
from eval.judges import Judge
from suite.configuration.names import check_name
from suite.plan import (
    BackendSpec,
    BenchmarkSource,
    ComputeSpec,
    DatasetSpec,
    EvalSpec,
    ModelSpec,
    PathsSpec,
    Recipe,
    TrackingSpec,
    benchmark_source,
    build,
    checked,
    dataset_spec,
    judge_of,
    method_of,
    model_spec,
    paths_spec,
    recipe_of,
    refuse_unknown,
)
from suite.purify.cut import COMBINE, CutSpec, check_combination

ON_BAD_ROW = ("error", "keep", "drop")
DUPLICATES = ("keep", "drop")


@dataclass(frozen=True, kw_only=True)
class CheckSpec:
    """Whether the scores can be trusted to separate anything; 0 leaves a check out."""

    controls: int  # embedded rows known to degrade safety, scored beside the data
    min_auroc: float  # warn where the 95 % interval of controls against data begins below
    prompts: int  # harmful requests put to the model that scores
    min_refused: float  # warn where it refuses a smaller share


@dataclass(frozen=True, kw_only=True)
class PurifyPlan:
    """Everything one purification needs to know."""

    model: ModelSpec  # is trained in ``verify``, and scores unless there is a scorer
    scorer: ModelSpec | None
    dataset: DatasetSpec
    methods: Mapping[str, Method]
    combine: str
    cut: CutSpec
    out: Path
    overwrite: bool
    on_bad_row: str
    duplicates: str
    max_characters: int
    chunk_rows: int | None  # rows scored and cached together; None = all
    check: CheckSpec
    transfer_rows: int  # scored by ``model`` too, where a scorer scores; 0 = none
    nearest_rows: int  # dropped rows whose nearest anchors are looked up, highest score first; 0 = none
    verify: bool
    verify_rows: int  # of each of kept, dropped, random
    train: Recipe
    benchmarks: tuple[BenchmarkSource, ...]
    evaluation: EvalSpec
    judge: Judge
    backend: BackendSpec
    tracking: TrackingSpec
    compute: ComputeSpec
    paths: PathsSpec
    seed: int

    @property
    def scoring_model(self) -> ModelSpec:
        return self.scorer or self.model

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """Those that will be loaded."""
        needed = [self.scoring_model] if any(m.uses_model for m in self.methods.values()) else []
        if self.model not in needed and (self.verify or (self.scorer is not None and self.transfer_rows)):
            needed.append(self.model)
        return tuple(needed)

    @property
    def label(self) -> str:
        """The methods, and how they are combined."""
        names = "+".join(self.methods)
        return names if len(self.methods) == 1 else f"{names} ({self.combine})"


def purify_plan(config: Mapping[str, Any]) -> PurifyPlan:
    """The plan of a resolved configuration (plain dictionaries and lists).

    Raises:
        UnknownNameError: a key that nothing reads.
        KeelBenchError: a missing key, a value of the wrong kind or out of bounds, a combination without sense.
    """
    known = {
        "model", "scorer", "dataset", "methods", "combine", "keep", "drop", "threshold", "out", "overwrite",
        "on_bad_row", "duplicates", "max_characters", "chunk_rows", "check", "transfer_rows", "nearest_rows",
        "verify", "verify_rows",
        "train", "benchmark", "eval", "judge", "backend", "tracking", "compute", "paths", "seed",
    }  # fmt: skip
    refuse_unknown(config, known, "setting")
    cut = CutSpec(
        keep=checked(float | None, config["keep"], "keep"),
        drop=checked(int | None, config["drop"], "drop"),
        threshold=checked(float | None, config["threshold"], "threshold"),
    )
    methods = {str(name): method_of(options) for name, options in (config["methods"] or {}).items()}
    chunk_rows = _positive(config, "chunk_rows", optional=True)
    for name, method in methods.items():
        check_name(name, "methods")
        if name in COLUMNS:
            raise KeelBenchError(f"methods.{name}: the tables use this name themselves; choose another")
        if not method.scores:
            raise KeelBenchError(f"methods.{name}: method {method.name!r} does not score samples")
        if chunk_rows is not None and not method.per_sample:
            raise KeelBenchError(
                f"chunk_rows={chunk_rows}: {method.name} scores a data set as a whole, so it cannot be done in chunks"
            )
    combine = _one_of(config, "combine", COMBINE)
    check_combination(len(methods), combine, cut)
    return PurifyPlan(
        model=model_spec(config["model"]),
        scorer=None if config["scorer"] is None else model_spec(config["scorer"]),
        dataset=dataset_spec(config["dataset"]),
        methods=methods,
        combine=combine,
        cut=cut,
        out=Path(checked(str, config["out"], "out")).expanduser(),
        overwrite=checked(bool, config["overwrite"], "overwrite"),
        on_bad_row=_one_of(config, "on_bad_row", ON_BAD_ROW),
        duplicates=_one_of(config, "duplicates", DUPLICATES),
        max_characters=_positive(config, "max_characters") or 0,
        chunk_rows=chunk_rows,
        check=build(CheckSpec, config["check"], "check"),
        transfer_rows=checked(int, config["transfer_rows"], "transfer_rows"),
        nearest_rows=checked(int, config["nearest_rows"], "nearest_rows"),
        verify=checked(bool, config["verify"], "verify"),
        verify_rows=_positive(config, "verify_rows") or 0,
        train=recipe_of(config["train"]),
        benchmarks=tuple(benchmark_source(name, spec) for name, spec in (config["benchmark"] or {}).items()),
        evaluation=build(EvalSpec, config["eval"], "eval"),
        judge=judge_of(config["judge"]),
        backend=build(BackendSpec, config["backend"], "backend"),
        tracking=build(TrackingSpec, config["tracking"], "tracking"),
        compute=build(ComputeSpec, config["compute"], "compute"),
        paths=paths_spec(config["paths"]),
        seed=checked(int, config["seed"], "seed"),
    )


def _one_of(config: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    if config[key] not in choices:
        raise UnknownNameError(key, str(config[key]), choices)
    return str(config[key])


def _positive(config: Mapping[str, Any], key: str, optional: bool = False) -> int | None:
    value = checked(int | None if optional else int, config[key], key)
    if value is not None and value < 1:
        raise KeelBenchError(f"{key}={value}: at least 1")
    return None if value is None else int(value)


COLUMNS = ("line", "id", "kept", "why", "score", "rank", "prompt_characters", "response_characters")  # of the side file
