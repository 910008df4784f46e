"""A measurement of geometry as typed values, out of ``conf/flowlens.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError, UnknownNameError
from suite.plan import (
    BenchmarkSource,
    ComputeSpec,
    DatasetSpec,
    ModelSpec,
    PathsSpec,
    TrackingSpec,
    benchmark_source,
    build,
    checked,
    dataset_spec,
    model_spec,
    paths_spec,
    refuse_unknown,
)


@dataclass(frozen=True, kw_only=True)
class FlowLensPlan:
    """Everything one measurement needs to know."""

    model: ModelSpec
    adapter: Path | None
    dataset: DatasetSpec | None  # whose instructions are the prompts ...
    benchmarks: tuple[BenchmarkSource, ...]  # ... or these benchmarks' prompts
    limit: int | None  # prompts of each expectation a benchmark
    strip: bool  # punctuation at the prompts' end
    components: int
    dimension_rows: int
    stability: bool
    reference: Path | None
    tracking: TrackingSpec
    compute: ComputeSpec
    paths: PathsSpec
    seed: int

    @property
    def data(self) -> str:
        """What the prompts are called."""
        return self.dataset.name if self.dataset else "+".join(b.spec.name for b in self.benchmarks)


def flowlens_plan(config: Mapping[str, Any]) -> FlowLensPlan:
    """The plan of a resolved configuration (plain dictionaries and lists).

    Raises:
        UnknownNameError: a key that nothing reads, or an unknown kind of data or of punctuation.
        KeelBenchError: a missing key, a value of the wrong kind, or a limit that does not apply.
    """
    known = {
        "model", "dataset", "benchmark", "tracking", "compute", "paths", "data", "limit", "adapter", "punctuation",
        "components", "dimension_rows", "stability", "reference", "seed", "scale",
    }  # fmt: skip
    refuse_unknown(config, known, "setting")
    for key, choices in (("data", ("benchmark", "dataset")), ("punctuation", ("strip", "keep"))):
        if config[key] not in choices:
            raise UnknownNameError(key, str(config[key]), choices)
    of_dataset = config["data"] == "dataset"
    limit = checked(int | None, config["limit"], "limit")
    if of_dataset and limit is not None:
        raise KeelBenchError("limit counts a benchmark's prompts; with data=dataset use dataset.limit")
    for name, least in (("components", 1), ("dimension_rows", 10)):
        if checked(int, config[name], name) < least:
            raise KeelBenchError(f"{name}={config[name]}: at least {least}")
    return FlowLensPlan(
        model=model_spec(config["model"]),
        adapter=_folder(config["adapter"], "adapter"),
        dataset=dataset_spec(config["dataset"]) if of_dataset else None,
        benchmarks=() if of_dataset else tuple(benchmark_source(n, s) for n, s in (config["benchmark"] or {}).items()),
        limit=limit,
        strip=config["punctuation"] == "strip",
        components=config["components"],
        dimension_rows=config["dimension_rows"],
        stability=checked(bool, config["stability"], "stability"),
        reference=_folder(config["reference"], "reference"),
        tracking=build(TrackingSpec, config["tracking"], "tracking"),
        compute=build(ComputeSpec, config["compute"], "compute"),
        paths=paths_spec(config["paths"]),
        seed=checked(int, config["seed"], "seed"),
    )


def _folder(value: Any, name: str) -> Path | None:
    return None if value is None else Path(checked(str, value, name)).expanduser()
