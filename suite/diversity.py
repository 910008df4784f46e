"""``python -m suite.diversity``: how repetitive a data set's texts are, with and without the query.

python -m suite.diversity dataset=alpaca
python -m suite.diversity -m dataset=alpaca,dolly dataset.limit=700
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from suite.entry import enter
from suite.paths import conf_dir
from suite.preflight.start import before_run
from suite.sweep import carry_out, told_failures

if TYPE_CHECKING:  # it imports torch, which --help does not wait for
    from suite.plan import DatasetSpec, PathsSpec, TrackingSpec

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DiversityPlan:
    """Everything one measurement needs to know."""

    dataset: "DatasetSpec"
    tracking: "TrackingSpec"
    paths: "PathsSpec"
    segment: int  # tokens of an MSTTR segment


def diversity_plan(config: Mapping[str, Any]) -> DiversityPlan:
    """The plan of a resolved configuration (plain dictionaries and lists).

    Raises:
        UnknownNameError: a key that nothing reads.
        KeelBenchError: a missing key or a value of the wrong kind.
    """
    from suite.plan import TrackingSpec, build, checked, dataset_spec, paths_spec, refuse_unknown

    # No model runs here, so that `compute`, which all entry points share, has nothing to say.
    refuse_unknown(config, {"dataset", "tracking", "compute", "paths", "segment", "scale"}, "setting")
    return DiversityPlan(
        dataset=dataset_spec(config["dataset"]),
        tracking=build(TrackingSpec, config["tracking"], "tracking"),
        paths=paths_spec(config["paths"]),
        segment=checked(int, config["segment"], "segment"),
    )


def run(plan: DiversityPlan, folder: Path, sweep: str) -> str:
    """Measure; ``diversity.parquet`` lies in ``folder`` when it returns.

    Returns:
        The run's id.

    Raises:
        KeelBenchError: no data, or none with a word.
    """
    from eval.diversity import lexical_diversity
    from suite.stages.data import load_data
    from suite.storage.cache import fingerprint
    from suite.storage.tables import write_table
    from suite.tracking.run import Tracker

    data = load_data(plan.dataset, plan.paths.data)
    texts = {
        "response": [s.response for s in data.samples],
        "query and response": [f"{s.prompt}\n{s.response}" for s in data.samples],
    }
    run_id = fingerprint([data.key, plan.segment])[:12]
    rows: list[Row] = [
        {
            "run_id": run_id,
            "dataset": plan.dataset.name,
            "text": what,
            **asdict(lexical_diversity(each, segment=plan.segment)),
            "segment": plan.segment,
            "data": data.key,
        }
        for what, each in texts.items()
    ]
    write_table(folder / "diversity.parquet", rows)
    name = f"{plan.dataset.name}-diversity"
    with Tracker(
        plan.tracking,
        folder=folder,
        name=name,
        sweep=sweep,
        job_type="diversity",
        config={"dataset": plan.dataset.name, "limit": plan.dataset.limit, "segment": plan.segment},
    ) as tracker:
        tracker.table("diversity", rows)
        tracker.summary({f"diversity/{k}": v for k, v in rows[0].items()})
    return run_id


def print_table(rows: list[Row]) -> None:
    """The measured sets, one row a set and kind of text."""
    from rich.console import Console
    from rich.table import Table

    from suite.terminal import plain

    shown = Table(title="Lexical diversity (entropies in bits; all but MSTTR depend on the number of texts)")
    for name in ("data set", "of"):
        shown.add_column(name)
    measured = ("H1", "H2", "H3", f"MSTTR-{rows[0]['segment']}", "distinct-2", "distinct-3")
    for name in ("texts", "tokens", "vocabulary", *measured):
        shown.add_column(name, justify="right")
    for row in rows:
        sizes = [f"{row[k]:,}" for k in ("texts", "tokens", "vocabulary")]
        bits = [_figure(row[f"entropy_{n}"], 2) for n in (1, 2, 3)]
        shares = [_figure(row[k], 3) for k in ("msttr", "distinct_2", "distinct_3")]
        shown.add_row(plain(row["dataset"]), row["text"], *sizes, *bits, *shares)
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="diversity")
def _hydra(config: DictConfig) -> None:
    carry_out(config, lambda values, folder, sweep: run(diversity_plan(values), folder, sweep))


def main() -> int:
    """Exit status: 0, or 1 where a run or a check before the first failed, or 2 where the command line was wrong."""
    return enter(_hydra, _summarise, preflight=partial(before_run, entry_point="diversity"))


def _summarise(sweep: Path) -> bool:
    """The table of all points; whether every one finished."""
    from suite.storage.tables import read_table

    files = sorted(sweep.glob("*/diversity.parquet"), key=lambda f: int(f.parent.name))
    if files:
        from suite.report.others import write_diversity_page

        rows = [row for f in files for row in read_table(f)]
        print_table(rows)
        print(f"Page: {write_diversity_page(sweep, rows)}")
    return not told_failures(sweep)


if __name__ == "__main__":
    sys.exit(main())
