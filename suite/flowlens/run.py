"""A measurement of geometry: read states → directions and dimension → trajectories → record."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from eval.errors import KeelBenchError
from eval.geometry.principal import alignment
from suite.flowlens.page import write_page
from suite.flowlens.plan import FlowLensPlan
from suite.flowlens.stage import load_geometry, measured, save_geometry
from suite.flowlens.states import Geometry, stability, trajectory_stability, without_punctuation
from suite.provenance import code_fingerprint
from suite.stages.adapter_files import check_adapter
from suite.stages.data import load_data, load_prompts
from suite.stages.models import LoadedModel, locate, prepare
from suite.storage.cache import Entry, StageCache, fingerprint
from suite.storage.tables import write_table
from suite.tracking.run import Tracker

Row = dict[str, Any]
Asked = list[tuple[str, str]]  # text, group


def check(plan: FlowLensPlan, folder: Path | None = None) -> Asked:
    """Read all inputs and list every problem that can be found before a model is loaded.

    Args:
        folder: the run's own, which may be its reference although nothing lies there yet.

    Returns:
        Every prompt with its group: what a benchmark expects of it ("refuse", "comply"), or "" of a data set's.

    Raises:
        KeelBenchError: one or more problems, one a line.
    """
    problems: list[str] = []
    asked: Asked = []
    for benchmark in plan.benchmarks:
        try:
            asked += [(p.text, p.expected) for p in load_prompts(benchmark, plan.limit, plan.paths.data)]
        except KeelBenchError as error:
            problems.append(str(error))
    try:
        if plan.dataset is not None:
            asked += [(s.prompt, "") for s in load_data(plan.dataset, plan.paths.data).samples]
    except KeelBenchError as error:
        problems.append(str(error))
    if plan.strip:
        asked = [(without_punctuation(text), group) for text, group in asked]
    if empty := sum(not text.strip() for text, _ in asked):
        problems.append(f"{empty} prompts of {plan.data} are empty, or nothing but punctuation")
    if not plan.benchmarks and plan.dataset is None:
        problems.append("no prompts: name a benchmark, such as benchmark=[xstest], or data=dataset")
    checks: list[Callable[[], object]] = [lambda: locate(plan.model)]
    if (adapter := plan.adapter) is not None:
        checks.append(lambda: check_adapter(adapter))
    if (reference := plan.reference) is not None and reference != folder:
        checks.append(lambda: load_geometry(reference))
    for each in checks:
        try:
            each()
        except KeelBenchError as error:
            problems.append(str(error))
    if problems:
        raise KeelBenchError("\n".join(problems))
    return asked


def run(plan: FlowLensPlan, folder: Path, sweep: str) -> str:
    """Carry out ``plan``; its tables, arrays and page lie in ``folder`` when it returns, and the tables in W&B.

    Returns:
        The run's id.

    Raises:
        KeelBenchError: anything a user can mend.
    """
    asked = check(plan, folder)
    cache = StageCache(plan.paths.cache)
    name = f"{plan.model.name}-{plan.data}-flowlens"
    with Tracker(
        plan.tracking, folder=folder, name=name, sweep=sweep, job_type="flowlens", config=_public(plan)
    ) as tracker:
        weights = prepare(plan.model, plan.compute, cache)
        found = measured(
            LoadedModel(weights, plan.model, plan.compute),
            plan.adapter,
            [text for text, _ in asked],
            components=plan.components,
            dimension_rows=plan.dimension_rows,
            with_mark=plan.stability,
            seed=plan.seed,
            cache=cache,
        )
        geometry = found.geometry
        save_geometry(folder, geometry)
        tables = {
            "flowlens": [summary_row(plan, geometry, (*weights.entries, found.entry))],
            "layers": layer_rows(geometry, [group for _, group in asked]),
            "spectrum": spectrum_rows(geometry),
        }
        if geometry.with_mark is not None:
            tables["stability"] = stability(geometry)
        for name, rows in tables.items():
            write_table(folder / f"{name}.parquet", rows)
            if name != "flowlens":
                tracker.table(f"flowlens/{name}", rows)
        row = tables["flowlens"][0]
        tracker.summary({(k if "/" in k else f"flowlens/{k}"): v for k, v in row.items()})
        write_page(folder)
    return str(row["run_id"])


def summary_row(plan: FlowLensPlan, geometry: Geometry, entries: Sequence[Entry]) -> Row:
    """The run's flat row."""
    explained = geometry.principal.explained
    row: Row = {
        "run_id": fingerprint([e.key for e in entries])[:12],
        "model": plan.model.name,
        "aligned": plan.model.align.name if plan.model.align else "none",
        "adapter": str(plan.adapter.name) if plan.adapter else "",
        "data": plan.data,
        "prompts": geometry.trajectories.mean_cosine.shape[0],
        "layers": geometry.trajectories.mean_cosine.shape[1],
        "width": len(geometry.principal.mean),
        "dtype": plan.model.dtype,
        "punctuation": "stripped" if plan.strip else "kept",
        "dimension": geometry.dimension.value,
        "dimension_points": geometry.dimension.points,
        "duplicate_states": geometry.dimension.duplicates,
        "component": component(geometry),
        "truncated_prompts": geometry.truncated,
        "seconds": sum(e.cost.seconds for e in entries if e.stage == "geometry"),
        **{f"explained/{i}": float(share) for i, share in enumerate(explained, start=1)},
        "stages": json.dumps([f"{e.stage}/{e.key}" for e in entries]),
        "stages_from_cache": sum(e.cached for e in entries),
        "code": code_fingerprint(),
    }
    if plan.reference is not None:
        reference = load_geometry(plan.reference)
        row["reference"] = plan.reference.name
        row["alignment/component"] = component(reference)
        row["alignment"] = alignment(reference.principal, geometry.principal, component(reference))
    if geometry.with_mark is not None:
        rows = stability(geometry)
        row["stability/projection"] = min(r["projection"] for r in rows)
        row["stability/mean_cosine"] = min(r["mean_cosine"] for r in rows)
        row["stability/trajectory"] = trajectory_stability(geometry)
    return row


def component(geometry: Geometry) -> int:
    """The principal direction whose number is the intrinsic dimension, rounded up, as far as directions were kept."""
    return min(math.ceil(geometry.dimension.value), len(geometry.principal.directions))


def layer_rows(geometry: Geometry, groups: Sequence[str]) -> list[Row]:
    """Trajectories: for every layer, component and group of prompts the mean projection and its standard deviation;
    depth is layer / number of layers. The group "all" comes first, others where there is more than one."""
    coordinates = geometry.trajectories.coordinates
    depth = coordinates.shape[1]
    named = sorted(set(groups))
    members = {"all": np.ones(len(groups), dtype=bool)}
    if len(named) > 1:
        members |= {name: np.array([g == name for g in groups]) for name in named}
    return [
        {
            "group": name,
            "layer": layer + 1,
            "depth": (layer + 1) / depth,
            "component": k + 1,
            "mean": float(coordinates[chosen, layer, k].mean()),
            "deviation": float(coordinates[chosen, layer, k].std()),
            "prompts": int(chosen.sum()),
        }
        for name, chosen in members.items()
        for layer in range(depth)
        for k in range(coordinates.shape[2])
    ]


def spectrum_rows(geometry: Geometry) -> list[Row]:
    """Each direction's variance, its share, and the share of all up to it."""
    explained = geometry.principal.explained
    return [
        {"component": i + 1, "variance": float(v), "explained": float(e), "cumulative": float(c)}
        for i, (v, e, c) in enumerate(zip(geometry.principal.variances, explained, np.cumsum(explained), strict=True))
    ]


def alignment_rows(folders: Sequence[Path], rows: Sequence[Row]) -> list[Row]:
    """One row for every two runs: ``alignment`` at the first's component, and |cos| of each of the first three
    directions. Runs of different width have no common directions; their rows say so."""
    measurements = [load_geometry(folder) for folder in folders]
    found = []
    for a, b in combinations(range(len(rows)), 2):
        first, second = measurements[a], measurements[b]
        row: Row = {
            "a": _name(rows[a]), "b": _name(rows[b]), "run_a": folders[a].name, "run_b": folders[b].name,
            "component": component(first), "alignment": None, "pc1": None, "pc2": None, "pc3": None, "error": "",
        }  # fmt: skip
        try:
            row["alignment"] = alignment(first.principal, second.principal, component(first))
            for k in range(1, 1 + min(3, len(first.principal.directions), len(second.principal.directions))):
                row[f"pc{k}"] = alignment(first.principal, second.principal, k)
        except KeelBenchError as error:
            row["error"] = str(error)
        found.append(row)
    return found


def _name(row: Row) -> str:
    aligned = "" if row["aligned"] == "none" else f"+{row['aligned']}"
    adapter = f"+{row['adapter'][:8]}" if row["adapter"] else ""
    return f"{row['model']}{aligned}{adapter} · {row['data']}"


def _public(plan: FlowLensPlan) -> Row:
    """The plan as JSON for W&B, without local paths."""
    values = asdict(plan)
    for private in ("paths", "tracking", "dataset", "benchmarks", "adapter", "reference"):
        del values[private]
    values["data"] = plan.data
    if Path(plan.model.source).is_absolute():
        values["model"]["source"] = Path(plan.model.source).name
    public: Row = json.loads(json.dumps(values, default=str))
    return public
