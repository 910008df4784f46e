"""A measurement of drift as typed values, out of ``conf/drift.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError
from suite.plan import (
    BenchmarkSource,
    ComputeSpec,
    ModelSpec,
    PathsSpec,
    TrackingSpec,
    benchmark_source,
    build,
    checked,
    model_spec,
    paths_spec,
    refuse_unknown,
)


@dataclass(frozen=True, kw_only=True)
class DriftPlan:
    """Everything one measurement needs to know."""

    model: ModelSpec
    benchmarks: tuple[BenchmarkSource, ...]
    experiments: tuple[str, ...]
    runs: Path  # where their sweeps lie
    layer: int  # block number from 0
    limit: int | None  # prompts of each expectation a benchmark
    tracking: TrackingSpec
    compute: ComputeSpec
    paths: PathsSpec
    seed: int

    @property
    def data(self) -> str:
        """What the prompts are called."""
        return "+".join(b.spec.name for b in self.benchmarks)


def drift_plan(config: Mapping[str, Any]) -> DriftPlan:
    """The plan of a resolved configuration (plain dictionaries and lists).

    Raises:
        UnknownNameError: a key that nothing reads.
        KeelBenchError: a missing key, a value of the wrong kind, no experiment, or no layer.
    """
    known = {"model", "benchmark", "tracking", "compute", "paths", "experiments", "layer", "limit", "seed", "scale"}
    refuse_unknown(config, known, "setting")
    if not isinstance(config["layer"], int):
        raise KeelBenchError(
            f"layer={config['layer']}: a block number from 0; python -m suite method.layer=auto finds one"
        )
    if not config["experiments"]:
        raise KeelBenchError("experiments: name at least one sweep or experiment")
    return DriftPlan(
        model=model_spec(config["model"]),
        benchmarks=tuple(benchmark_source(n, s) for n, s in (config["benchmark"] or {}).items()),
        experiments=checked(tuple[str, ...], config["experiments"], "experiments"),
        runs=Path(checked(str, config["paths"]["runs"], "paths.runs")).expanduser(),
        layer=checked(int, config["layer"], "layer"),
        limit=checked(int | None, config["limit"], "limit"),
        tracking=build(TrackingSpec, config["tracking"], "tracking"),
        compute=build(ComputeSpec, config["compute"], "compute"),
        paths=paths_spec(config["paths"]),
        seed=checked(int, config["seed"], "seed"),
    )
