"""From resolved configurations (plain dictionaries and lists) to the plan: a function a group."""

import dataclasses
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from baselines import get_method
from baselines.method import Method, build_method
from baselines.regularizer import build_regularizer
from eval.benchmarks import BenchmarkSpec
from eval.errors import KeelBenchError, UnknownNameError
from eval.judges import Judge, judge_class
from eval.sandbox import NAMES as SANDBOXES
from eval.utility.tasks import STOCK
from suite.configuration.names import check_name
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
from suite.plan.typed import build, checked, refuse_unknown, tupled
from suite.sources import HubSet, Source


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
    regularizer_options = {k: tupled(v) for k, v in config["regularizer"].items()}
    regularizer = build_regularizer(regularizer_options.pop("name"), regularizer_options)
    if method.name == "vcl" and regularizer.name != "vcl":
        raise KeelBenchError("method=vcl is the VCL regulariser on all samples: it needs regularizer=vcl")
    if method.intervenes and config["backend"]["name"] != "hf":
        raise KeelBenchError(f"method={method.name} changes the model's states as it answers: it needs backend=hf")
    if method.intervenes and config["eval"].get("every") is not None:
        raise KeelBenchError(f"method={method.name}: checkpoints would answer without it; eval.every=null")
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
    options = {k: tupled(v) for k, v in config.items()}
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
