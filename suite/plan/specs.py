"""What a run is made of, as typed values: one class a configuration group, and ``RunPlan``, which holds them."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.method import Method
from baselines.regularizer import Regularizer
from eval.benchmarks import BenchmarkSpec
from eval.errors import KeelBenchError
from eval.judges import Judge
from suite.sources import Source


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
