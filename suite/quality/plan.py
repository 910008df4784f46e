"""A measurement of filter quality as typed values, out of ``conf/filter_quality.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baselines.method import Method
from eval.errors import KeelBenchError, UnknownNameError
from suite.configuration.names import check_name
from suite.plan import (
    ComputeSpec,
    DatasetSpec,
    ModelSpec,
    PathsSpec,
    TrackingSpec,
    build,
    checked,
    dataset_spec,
    method_of,
    model_spec,
    paths_spec,
    refuse_unknown,
)

SHARES = (0.01, 0.3)  # of planted rows that make sense to ask for
REFERENCES = ("oracle", "random", "length", "inverted")  # rows of every table, beside the methods


@dataclass(frozen=True, kw_only=True)
class PlantedSpec:
    path: str | None  # None = the embedded rows


@dataclass(frozen=True, kw_only=True)
class QualityPlan:
    """Everything one measurement needs to know."""

    model: ModelSpec
    dataset: DatasetSpec  # what is taken for benign
    methods: Mapping[str, Method]  # by the name in the tables
    share: float  # of planted rows in the mixture
    planted: PlantedSpec
    tracking: TrackingSpec
    compute: ComputeSpec
    paths: PathsSpec
    seed: int


def quality_plan(config: Mapping[str, Any]) -> QualityPlan:
    """The plan of a resolved configuration (plain dictionaries and lists).

    Raises:
        UnknownNameError: a key that nothing reads, or a method in ``only`` that is not under ``methods``.
        KeelBenchError: a missing key, a value of the wrong kind, a share out of bounds, a method that scores nothing.
    """
    known = {"model", "dataset", "methods", "only", "share", "planted", "tracking", "compute", "paths", "seed"}
    refuse_unknown(config, known, "setting")
    share = checked(float, config["share"], "share")
    if not SHARES[0] <= share <= SHARES[1]:
        raise KeelBenchError(f"share={share}: the planted rows' share of the mixture, from {SHARES[0]} to {SHARES[1]}")
    methods = {name: _method(name, options) for name, options in config["methods"].items()}
    only = checked(tuple[str, ...] | None, config["only"], "only")
    if only is not None:
        for name in only:
            if name not in methods:
                raise UnknownNameError("method in only:", name, methods)
        methods = {name: methods[name] for name in dict.fromkeys(only)}
    return QualityPlan(
        model=model_spec(config["model"]),
        dataset=dataset_spec(config["dataset"]),
        methods=methods,
        share=share,
        planted=build(PlantedSpec, config["planted"], "planted"),
        tracking=build(TrackingSpec, config["tracking"], "tracking"),
        compute=build(ComputeSpec, config["compute"], "compute"),
        paths=paths_spec(config["paths"]),
        seed=checked(int, config["seed"], "seed"),
    )


def _method(name: str, options: Mapping[str, Any]) -> Method:
    check_name(name, "methods")
    if name in (*REFERENCES, *_COLUMNS):
        raise KeelBenchError(f"methods.{name}: the tables use this name themselves; choose another")
    method = method_of(options)
    if not method.scores:
        raise KeelBenchError(f"methods.{name}: method {method.name!r} does not score samples")
    return method


_COLUMNS = ("id", "planted", "category", "prompt", "response")  # of rankings.parquet
