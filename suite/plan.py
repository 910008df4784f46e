"""A run as typed values: the only place below the entry points that sees a Hydra configuration.

``plan_from_config`` reads every key it is given and refuses those that nothing reads, so that a setting cannot be
ignored in silence.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from baselines import get_method
from baselines.method import Method, build_method
from baselines.regularizer import Regularizer, build_regularizer
from eval.benchmarks import BenchmarkSpec
from eval.errors import KeelBenchError, UnknownNameError
from eval.judges import Judge, judge_class
from eval.sandbox import NAMES as SANDBOXES
from eval.utility.tasks import STOCK
from suite.configuration.names import check_name
from suite.sources import HubSet, Source


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Supervised fine-tuning; of all weights, where it is not a LoraRecipe."""

    name: str
    learning_rate: float
    epochs: float
    batch_size: int  # conversations a forward pass
    accumulation: int  # forward passes an optimiser step
    warmup_ratio: float
    schedule: str
    weight_decay: float
    max_grad_norm: float
    max_length: int  # tokens of a conversation

    def identity(self) -> dict[str, Any]:
        """What a stage's key knows of it: not its name, and options that came later only where they are used."""
        later = {f.name: f.default for f in dataclasses.fields(self) if f.default is not dataclasses.MISSING}
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k != "name" and not (k in later and v == later[k])}


@dataclass(frozen=True, kw_only=True)
class LoraRecipe(Recipe):
    """Supervised fine-tuning with LoRA (Hu et al. 2022), perhaps on quantised weights (Dettmers et al. 2023)."""

    rank: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...]
    quantization: typing.Literal["none", "nf4"] = "none"  # of the frozen weights, while they are trained on


@dataclass(frozen=True, kw_only=True)
class AlignSpec:
    """A short safety fine-tune that comes before everything else; merged into the weights."""

    name: str
    refusals: str | None  # data files; None = the embedded ones
    helpful: str | None
    n_refusals: int | None  # rows used of each; None = all
    n_helpful: int | None
    seed: int
    recipe: LoraRecipe


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    name: str
    source: str  # "embedded:<package>", a folder, or a hub repository
    revision: str | None
    dtype: str  # bfloat16, float16, float32
    attention: str  # transformers' attn_implementation
    learning_rate: float  # read by the recipes as ${model.learning_rate}
    larf_layer: int | str  # read by method/larf.yaml
    align: AlignSpec | None
    trust_remote_code: bool = False  # whether Python code that comes with the weights is run


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    name: str
    format: str
    k: int  # read by the selections as ${dataset.k}
    limit: int | None
    source: Source
    safety_ratio: float | None = None  # of a mixture: its share of safety rows; None = no mixture
    size: int | None = None  # of a mixture: its rows
    safety_source: Source | None = None  # where they come from; None = the source's own rows of category "safety"


@dataclass(frozen=True, kw_only=True)
class SelectionSpec:
    """Which samples are trained on: ``keep`` one of top, bottom, drop_top, all; by number or by share."""

    name: str
    k: int | None = None
    fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkSource:
    """A benchmark, where its prompts are, and whose they are."""

    spec: BenchmarkSpec
    source: Source
    hub_columns: Mapping[str, str]  # prompt_column, category_column, ... where the hub's copy names them otherwise
    hub_where: Mapping[str, list[str]]  # rows kept of the hub's copy; the published file's filter is its subset
    citation: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    name: str
    limit: int | None  # prompts of each expectation a benchmark; None = all
    max_new_tokens: int
    system: str | None
    every: int | None = None  # optimiser steps between two evaluations of safety while fine-tuning; None = none
    every_limit: int = 20  # prompts of each expectation a benchmark then

    def __post_init__(self) -> None:
        if (self.every is not None and self.every < 1) or self.every_limit < 1:
            raise KeelBenchError(f"eval.every={self.every}, eval.every_limit={self.every_limit}: at least 1 each")


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    name: str
    tokens_per_batch: int
    merge_adapter: bool


@dataclass(frozen=True, kw_only=True)
class VllmSpec:
    """vLLM's engine; None leaves a choice to it or, on a CPU, to ``eval.vllm_engine``."""

    name: str
    merge_adapter: bool
    max_model_len: int
    max_num_seqs: int
    gpu_memory_utilization: float
    kv_cache_gib: float | None
    enforce_eager: bool | None
    tensor_parallel_size: int


@dataclass(frozen=True, kw_only=True)
class UtilityTaskSpec:
    fewshot: int | None = None  # None = as many as the harness's task says
    limit: int | None = None  # questions a subject
    parts: tuple[str, ...] | None = None  # subjects; None = all


@dataclass(frozen=True, kw_only=True)
class UtilitySpec:
    """Tasks of lm-eval, and how they are put to the model."""

    name: str
    chat_template: bool
    batch_size: int
    max_new_tokens: int | None
    sandbox: str
    tasks: Mapping[str, UtilityTaskSpec]


@dataclass(frozen=True, kw_only=True)
class TrackingSpec:
    mode: str  # auto, online, offline, disabled
    project: str
    entity: str | None
    show_harmful: bool
    tags: tuple[str, ...]
    notes: str | None
    group: str | None
    artifacts: tuple[str, ...] = ("scores", "adapter", "completions")


@dataclass(frozen=True, kw_only=True)
class ComputeSpec:
    device: str  # auto, cpu, cuda, cuda:1, ...
    scoring_tokens_per_batch: int
    scoring_processes: int | typing.Literal["auto"]  # auto = one a visible GPU
    training_tokens_per_pass: int
    max_length: int
    threads: int | None
    training_processes: int | typing.Literal["auto"] = 1  # auto = one a visible GPU
    training_sharding: typing.Literal["none", "full"] = "none"  # full: FSDP over the training processes
    gradient_checkpointing: bool = False
    device_map: typing.Literal["auto"] | None = None  # auto: one model's blocks over all visible GPUs
    checkpoint_seconds: float = 60.0  # between two states of a fine-tuning on disk; 0 = after every step
    deterministic: bool = False  # on a GPU: kernels that give the same bits each time, where there are any


@dataclass(frozen=True, kw_only=True)
class PathsSpec:
    data: Path | None
    cache: Path


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything one run needs to know."""

    model: ModelSpec
    dataset: DatasetSpec
    method: Method
    regularizer: Regularizer
    selection: SelectionSpec
    train: Recipe
    benchmarks: tuple[BenchmarkSource, ...]
    evaluation: EvalSpec
    utility: UtilitySpec
    judge: Judge
    backend: BackendSpec | VllmSpec
    tracking: TrackingSpec
    compute: ComputeSpec
    paths: PathsSpec
    seed: int
    arm: str | None = None  # what a comparison calls this point; None = method and selection

    @property
    def label(self) -> str:
        """The point's name in tables: its arm's, or method with selection."""
        if self.arm:
            return self.arm
        label = f"{self.method.name}-{self.selection.name}" if self.method.scores else self.method.name
        plain = self.regularizer.name in ("none", self.method.name) or not self.method.fine_tunes
        return label if plain else f"{label}+{self.regularizer.name}"


def plan_from_config(config: Mapping[str, Any]) -> RunPlan:
    """The plan of a resolved configuration (plain dictionaries and lists).

    Raises:
        UnknownNameError: a key that nothing reads, an unknown method or judge.
        KeelBenchError: a missing key or a value of the wrong kind.
    """
    known = {
        "model", "dataset", "method", "regularizer", "selection", "train", "benchmark", "eval", "utility", "judge",
        "backend", "tracking", "compute", "paths", "seed", "arm", "scale",
    }  # fmt: skip
    refuse_unknown(config, known, "setting")
    method = method_of(config["method"])
    regularizer_options = {k: _tupled(v) for k, v in config["regularizer"].items()}
    regularizer = build_regularizer(regularizer_options.pop("name"), regularizer_options)
    if method.name == "vcl" and regularizer.name != "vcl":
        raise KeelBenchError("method=vcl is the VCL regulariser on all samples: it needs regularizer=vcl")
    if method.intervenes and config["backend"]["name"] != "hf":
        raise KeelBenchError(f"method={method.name} changes the model's states as it answers: it needs backend=hf")
    if method.intervenes and config["eval"].get("every") is not None:
        raise KeelBenchError(f"method={method.name}: checkpoints would answer without it; eval.every=null")
    if config["utility"]["tasks"] and (method.intervenes or method.name == "system_prompt"):
        raise KeelBenchError(f"method={method.name}: utility tasks would be put to the model without it; utility=none")
    _names(config)
    if config["compute"].get("deterministic") and config["backend"]["name"] != "hf":
        raise KeelBenchError("compute.deterministic=true: vLLM batches as it goes, so it needs backend=hf")
    if config["model"].get("trust_remote_code") and config["backend"]["name"] != "hf":
        raise KeelBenchError("model.trust_remote_code=true runs through transformers alone: it needs backend=hf")
    adapted = config["backend"]["name"] == "vllm" and not config["backend"].get("merge_adapter") and method.fine_tunes
    if config["utility"]["tasks"] and adapted and "lm_head" in config["train"]["target_modules"]:
        raise KeelBenchError("vLLM gives no likelihoods with an adapter on lm_head; backend.merge_adapter=true")
    return RunPlan(
        model=model_spec(config["model"]),
        dataset=dataset_spec(config["dataset"]),
        method=method,
        regularizer=regularizer,
        selection=_selection(config["selection"]),
        train=recipe_of(config["train"]),
        benchmarks=tuple(benchmark_source(name, spec) for name, spec in (config["benchmark"] or {}).items()),
        evaluation=_evaluation(config["eval"], method),
        utility=_utility(config["utility"]),
        judge=judge_of(config["judge"]),
        backend=build(BACKENDS[config["backend"]["name"]], config["backend"], "backend"),
        tracking=build(TrackingSpec, config["tracking"], "tracking"),
        compute=build(ComputeSpec, config["compute"], "compute"),
        paths=paths_spec(config["paths"]),
        seed=checked(int, config["seed"], "seed"),
        arm=config.get("arm"),
    )


def _names(config: Mapping[str, Any]) -> None:
    """Names that go into tables and file names lead nowhere."""
    for section in ("model", "dataset", "selection", "train", "eval", "utility"):
        if isinstance(config[section].get("name"), str):
            check_name(config[section]["name"], f"{section}.name")
    for name in config["benchmark"] or {}:
        check_name(str(name), "benchmark")
    if config.get("arm") is not None:
        check_name(str(config["arm"]), "arm")


BACKENDS = {"hf": BackendSpec, "vllm": VllmSpec}


def _evaluation(config: Mapping[str, Any], method: Method) -> EvalSpec:
    """The evaluation, under the system turn of a method that is one."""
    spec: EvalSpec = build(EvalSpec, config, "eval")
    system = getattr(method, "system", None) if method.name == "system_prompt" else None
    if system is not None and spec.system is not None:
        raise KeelBenchError("method=system_prompt brings the system turn: leave eval.system null")
    return spec if system is None else dataclasses.replace(spec, system=system)


def method_of(config: Mapping[str, Any]) -> Method:
    """The method that a section such as ``conf/method/larf.yaml`` describes."""
    options = {k: _tupled(v) for k, v in config.items()}
    method: Method = build_method(get_method(options.pop("name")), options)
    return method


def recipe_of(config: Mapping[str, Any]) -> Recipe:
    """The recipe that a section such as ``conf/train/lora.yaml`` describes; one without a rank trains all weights."""
    recipe: Recipe = build(LoraRecipe if "rank" in config else Recipe, config, "train")
    return recipe


def judge_of(config: Mapping[str, Any]) -> Judge:
    """The judge that a section such as ``conf/judge/llama_guard.yaml`` describes."""
    options = dict(config)
    judge: Judge = build(judge_class(options.pop("name")), options, "judge")
    return judge


def paths_spec(config: Mapping[str, Any]) -> PathsSpec:
    """Where files lie (``paths.runs`` is Hydra's to read)."""
    refuse_unknown(config, {"data", "cache", "runs"}, "paths setting")
    data = config["data"]
    return PathsSpec(data=Path(data).expanduser() if data else None, cache=Path(config["cache"]).expanduser())


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """A model's section, its alignment included."""
    values = dict(config)
    align = dict(values.pop("align", None) or {})
    if align.get("name", "none") == "none":
        spec = None
    else:
        recipe = build(LoraRecipe, align.pop("recipe"), "model.align.recipe")
        if recipe.quantization != "none":
            raise KeelBenchError("model.align.recipe.quantization=none: an alignment is merged into the weights")
        spec = build(AlignSpec, {**align, "recipe": recipe}, "model.align")
    return build(ModelSpec, {**values, "align": spec}, "model")


def dataset_spec(config: Mapping[str, Any]) -> DatasetSpec:
    """A data set's section."""
    source, values = _source(config, "baselines", "dataset")
    if values.get("safety_source") is not None:
        values["safety_source"], more = _source(values["safety_source"], "baselines", "dataset.safety_source")
        refuse_unknown(more, set(), "dataset.safety_source setting")
    return build(DatasetSpec, {**values, "source": source}, "dataset")


def _source(config: Mapping[str, Any], package: str, where: str) -> tuple[Source, dict[str, Any]]:
    """A section's source, and its other settings."""
    values = dict(config)
    places: dict[str, Any] = {k: values.pop(k) for k in ("embedded", "path", "local", "hub") if k in values}
    if places.get("embedded"):
        inside = places["embedded"].split("/")
        places["embedded"] = Path(str(files(inside[0] if len(inside) == 2 else package) / "data" / inside[-1]))
    if places.get("hub"):
        places["hub"] = build(HubSet, places["hub"], f"{where}.hub")
    return build(Source, places, where), values


def _selection(config: Mapping[str, Any]) -> SelectionSpec:
    spec = build(SelectionSpec, config, "selection")
    if spec.name not in SELECTIONS:
        raise UnknownNameError("selection", spec.name, SELECTIONS)
    if spec.name != "all" and (spec.k is None) == (spec.fraction is None):
        raise KeelBenchError("selection: give either k (a number of samples) or fraction (a share), the other null")
    if spec.k is not None and spec.k < 1:
        raise KeelBenchError(f"selection.k={spec.k}: at least 1")
    if spec.fraction is not None and not 0 < spec.fraction < 1:
        raise KeelBenchError(f"selection.fraction={spec.fraction}: between 0 and 1")
    return spec


SELECTIONS = ("top", "bottom", "drop_top", "all")


def benchmark_source(name: str, config: Mapping[str, Any]) -> BenchmarkSource:
    """One of ``conf/benchmark``, under the name that the run gives it."""
    where = f"benchmark.{name}"
    source, values = _source(config, "eval", where)
    about = {k: values.pop(k, "") for k in ("citation", "licence")}
    hub_columns = dict(values.pop("hub_columns", None) or {})
    columns = {"prompt_column", "category_column", "context_column"}
    refuse_unknown(hub_columns, columns, f"{where}.hub_columns setting")
    hub_where = dict(values.pop("hub_where", None) or {})
    spec = build(BenchmarkSpec, {"name": name, **values}, where)
    return BenchmarkSource(spec=spec, source=source, hub_columns=hub_columns, hub_where=hub_where, **about)


def _utility(config: Mapping[str, Any]) -> UtilitySpec:
    refuse_unknown(config["tasks"] or {}, set(STOCK), "utility task")
    if config.get("sandbox") not in SANDBOXES:
        raise UnknownNameError("sandbox", str(config.get("sandbox")), SANDBOXES)
    tasks = {k: build(UtilityTaskSpec, v or {}, f"utility.tasks.{k}") for k, v in (config["tasks"] or {}).items()}
    spec: UtilitySpec = build(UtilitySpec, {**config, "tasks": tasks}, "utility")
    return spec


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """``cls`` from ``values``, every key read, every value of its field's type."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    refuse_unknown(values, set(fields), f"{where} setting")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise KeelBenchError(f"{where}: missing {', '.join(missing)}")
    return cls(**{k: checked(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def refuse_unknown(values: Mapping[str, Any], known: set[str], kind: str) -> None:
    """
    Raises:
        UnknownNameError: a key that nothing reads.
    """
    for key in values:
        if key not in known:
            raise UnknownNameError(kind, str(key), known)


def checked(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint`` allows: lists become tuples, whole numbers floats; nothing else is converted."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is not type(None):
                try:
                    return checked(option, value, where)
                except KeelBenchError:
                    continue
        raise KeelBenchError(f"{where}={value!r}: expected {hint}")
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise KeelBenchError(f"{where}={value!r}: one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise KeelBenchError(f"{where}={value!r}: expected a list")
        return tuple(checked(typing.get_args(hint)[0], v, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    wrong = not isinstance(value, expected) or (isinstance(value, bool) and expected is int)
    if wrong:
        raise KeelBenchError(f"{where}={value!r}: expected {getattr(expected, '__name__', expected)}")
    return value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
