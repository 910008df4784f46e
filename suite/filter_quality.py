"""``python -m suite.filter_quality``: which methods find rows known to degrade safety, before any training.

python -m suite.filter_quality                                      # the embedded model, benign and planted rows
python -m suite.filter_quality -m share=0.01,0.1,0.3 'only=[larf,gradsafe]'
python -m suite.filter_quality model=llama3 dataset=dolly dataset.limit=1500
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from suite.entry import enter
from suite.paths import conf_dir
from suite.preflight.start import before_run
from suite.sweep import carry_out, told_failures


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="filter_quality")
def _hydra(config: DictConfig) -> None:
    carry_out(config, _work)


def _work(values: dict[str, Any], folder: Path, sweep: str) -> str:
    from suite.quality.plan import quality_plan
    from suite.quality.run import run

    return run(quality_plan(values), folder, sweep)


def main() -> int:
    """Exit status: 0, or 1 where a run, a method or a check before the first failed, or 2 where the command line was
    wrong."""
    return enter(_hydra, _summarise, preflight=partial(before_run, entry_point="filter_quality"))


def _summarise(sweep: Path) -> bool:
    """Every point's table and page; of several points, the report that shows their tables together.

    Returns:
        Whether every point finished.
    """
    from suite.report import write_report
    from suite.report.load import load_qualities

    qualities = load_qualities(sweep)
    for quality in qualities:
        _print_table(quality.facts, quality.rows)
        print(f"Page: {sweep / quality.place / 'filter_quality.html'}\n")
    if len(qualities) > 1:
        print(f"Report: {write_report(sweep)}")
    return not told_failures(sweep)


def _print_table(facts: list[tuple[str, str]], rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from suite.terminal import plain

    table = Table(title=plain(" · ".join(f"{name} {value}" for name, value in facts)), title_justify="left")
    table.add_column("method")
    shares = [f"precision %\ntop {rows[0]['planted']} (k)", "precision %\ntop 10"]
    shares += [f"recall %\ndrop {share} %" for share in (5, 10, 20)]
    for column in ("AUROC [95 %]", "average\nprecision", *shares, "ρ with\nlength", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        if row["error"]:
            table.add_row(plain(row["name"]), "failed")
            continue
        table.add_row(
            plain(row["name"]),
            f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]",
            f"{row['average_precision']:.3f}",
            *(f"{100 * row[share]:.1f}" for share in _SHARES),
            _shown(row["length_correlation"], ".2f"),
            _shown(row["seconds"], ".1f"),
            style="dim" if row["kind"] == "reference" else None,
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


_SHARES = ("precision_at_planted", "precision_at_10", "recall_dropping_5", "recall_dropping_10", "recall_dropping_20")


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
