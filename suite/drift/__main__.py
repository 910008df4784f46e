"""``python -m suite.drift``: where fine-tuning moves the representations of harmful prompts.

python -m suite.drift experiments=[larf_table1]
python -m suite.drift -m +experiment=larf_fig17 scale=laptop     # once larf_table1 and larf_table5 have been run
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


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="drift")
def _hydra(config: DictConfig) -> None:
    carry_out(config, _work)


def _work(values: dict[str, Any], folder: Path, sweep: str) -> str:
    from suite.drift.plan import drift_plan
    from suite.drift.run import run

    return run(drift_plan(values), folder, sweep)


def main() -> int:
    """Exit status: 0, or 1 where a run or a check before the first failed, or 2 where the command line was wrong."""
    return enter(_hydra, _summarise, preflight=partial(before_run, entry_point="drift"))


def _summarise(sweep: Path) -> bool:
    """The table of every point; whether every one finished."""
    from rich.console import Console
    from rich.table import Table

    from suite.drift.page import SHOWN, shown
    from suite.storage.tables import read_table
    from suite.terminal import plain

    for file in sorted(sweep.glob("*/drift.parquet"), key=lambda f: int(f.parent.name)):
        rows = read_table(file)
        table = Table(title=plain(f"Drift behind block {rows[0]['layer']}: {rows[0]['data']}"), title_justify="left")
        for name in SHOWN.values():
            table.add_column(name)
        for row in rows:
            table.add_row(*(plain(cell) for cell in shown(row).values()))
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        print(f"Page: {file.parent / 'drift.html'}")
    return not told_failures(sweep)


if __name__ == "__main__":
    sys.exit(main())
