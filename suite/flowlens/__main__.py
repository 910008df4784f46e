"""``python -m suite.flowlens``: the geometry of hidden states, and how models or data sets align.

python -m suite.flowlens benchmark=[xstest]
python -m suite.flowlens -m model=smollm2 model/align=none,mini     # ends with the alignment of every two points
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


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="flowlens")
def _hydra(config: DictConfig) -> None:
    carry_out(config, _work)


def _work(values: dict[str, Any], folder: Path, sweep: str) -> str:
    from suite.flowlens.plan import flowlens_plan
    from suite.flowlens.run import run

    if values["reference"] == "first":  # the sweep's first point, which is its own reference
        values["reference"] = str(folder.parent / "0")
    return run(flowlens_plan(values), folder, sweep)


def main() -> int:
    """Exit status: 0, or 1 where a run or a check before the first failed, or 2 where the command line was wrong."""
    return enter(_hydra, _summarise, preflight=partial(before_run, entry_point="flowlens"))


def _summarise(sweep: Path) -> bool:
    """A table of all points, and of several points the alignment of every two.

    Returns:
        Whether every point finished.
    """
    from suite.flowlens.page import write_alignment_page
    from suite.flowlens.run import alignment_rows
    from suite.storage.tables import read_table, write_table

    folders = sorted((f.parent for f in sweep.glob("*/flowlens.html")), key=lambda f: int(f.name))
    rows = [read_table(folder / "flowlens.parquet")[0] for folder in folders]
    if not rows:
        return not told_failures(sweep)
    _print("FlowLens", [_shown(folder.name, row) for folder, row in zip(folders, rows, strict=True)])
    if len(rows) > 1:
        pairs = alignment_rows(folders, rows)
        write_table(sweep / "alignment.parquet", pairs)
        columns = ("a", "b", "component", "alignment", "pc1", "pc2", "pc3")
        _print("Alignment: |cos| of principal directions", [{c: _figure(p[c]) for c in columns} for p in pairs])
        for pair in pairs:
            if pair["error"]:
                print(f"not aligned: {pair['a']} and {pair['b']}: {pair['error']}")
        names = list(dict.fromkeys(name for p in pairs for name in (p["a"], p["b"])))
        print(f"Page: {write_alignment_page(sweep, names, pairs)}")
    for folder in folders:
        print(f"Page: {folder / 'flowlens.html'}")
    return not told_failures(sweep)


def _shown(number: str, row: dict[str, Any]) -> dict[str, str]:
    shown = {
        "run": number,
        "model": row["model"],
        "aligned": row["aligned"],
        "adapter": row["adapter"][:8] or "–",
        "data": row["data"],
        "prompts": str(row["prompts"]),
        "dimension": _figure(row["dimension"]),
        "PC1-3 %": f"{100 * sum(row.get(f'explained/{i}') or 0 for i in (1, 2, 3)):.1f}",
        "seconds": f"{row['seconds']:.1f}",
    }
    if row.get("alignment") is not None:
        shown["alignment with the reference"] = _figure(row["alignment"])
    if "stability/projection" in row:
        shown |= {
            "stability\nPC1": _figure(row["stability/projection"]),
            "\ncosine": _figure(row["stability/mean_cosine"]),
            "\ntrajectory": _figure(row["stability/trajectory"]),
        }
    return shown


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _print(title: str, rows: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from suite.terminal import plain

    shown = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        shown.add_column(name)
    for row in rows:
        shown.add_row(*(plain(row.get(name, "–")) for name in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


if __name__ == "__main__":
    sys.exit(main())
