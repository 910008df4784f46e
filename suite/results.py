"""``python -m suite.results``: one row a run, out of ``record.json`` files or out of W&B.

python -m suite.results                                                   # the latest sweep under runs/
python -m suite.results --where "method='larf' and model='smollm2'"       # of every sweep under runs/
python -m suite.results runs --csv                                        # every run there, as CSV
python -m suite.results --from wandb:team/keelbench --parquet team.parquet
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError
from suite import store
from suite.command_line import one_line_errors, parser_of, runs_folder
from suite.records import read_row

Row = dict[str, Any]


def collect(folder: Path, *, write: bool = False) -> list[Row]:
    """Rows of all finished runs under ``folder``, in run order; ``write`` leaves ``results.parquet`` beside them."""
    files = sorted(folder.rglob("record.json"), key=lambda f: [_natural(p) for p in f.parent.parts])
    rows = [row for f in files if (row := read_row(f.parent)) is not None]
    if write and rows:
        import pandas as pd

        pd.DataFrame(rows).to_parquet(folder / "results.parquet")
    return rows


def _natural(part: str) -> tuple[int, int | str]:
    return (0, int(part)) if part.isdigit() else (1, part)


def metrics(rows: Sequence[Row]) -> list[str]:
    """Names of the rates worth a column: attack success, false refusals, utility, then what is not zero everywhere."""
    # Rates that another judge gave later (suite.judge) are not this run's: they have its name in front.
    names = [k for row in rows for k in row if k.split("/")[0] in _PREFIXES and f"{k}/low" in row]
    ordered = sorted(dict.fromkeys(names), key=lambda n: (_PREFIXES.index(n.split("/")[0]), n))
    return [n for n in ordered if n.split("/")[0] in _ALWAYS or any(row.get(n) for row in rows)]


_ALWAYS = ["asr", "false_refusal", "utility"]
_PREFIXES = [*_ALWAYS, "incoherent", "unparsed"]


def show(row: Row, metric: str) -> str:
    """``12.5 [7.2, 20.8]``: per cent with its Wilson 95 % interval; ``–`` where the run has no such metric."""
    if row.get(metric) is None:
        return "–"
    value, low, high = (100 * row[k] for k in (metric, f"{metric}/low", f"{metric}/high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def means(rows: Sequence[Row]) -> list[str]:
    """Names of the mean scores that the runs' own judge gave, such as ``gpt_score/harmbench``."""
    columns = dict.fromkeys(k for row in rows for k in row if not k.startswith("judged/"))
    return [k.removesuffix("/ci_low") for k in columns if k.endswith("/ci_low")]


def show_mean(row: Row, name: str) -> str:
    """``3.12 [2.80, 3.44]``: on the judge's own scale, with its 95 % t interval; ``–`` where there is none."""
    value, low, high = (row.get(k) for k in (name, f"{name}/ci_low", f"{name}/ci_high"))
    if value is None:
        return "–"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def conditions(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What differs between rows although a comparison wants it equal, with the values found."""
    matter: tuple[str, ...] = (
        "model", "aligned", "dataset", "judge", "judge_version", "fingerprint/judge", "backend", "decoding",
        "max_new_tokens", "dtype", "device", "gpus", "rounding", "fingerprint/template", "fingerprint/prompts",
        "fingerprint/utility", "fingerprint/data", "fingerprint/code", "prompt_limit",
    )  # fmt: skip
    # Library versions, and commits of what came from the hub.
    matter += tuple(dict.fromkeys(k for row in rows for k in row if k.startswith(("version/", "revision/"))))
    found = {name: sorted({str(row.get(name)) for row in rows}) for name in matter}
    found["shrunk"] = sorted({"nothing" if row.get("shrunk") in (None, "[]") else "some batches" for row in rows})
    return {name: values for name, values in found.items() if len(values) > 1}


def print_comparison(rows: Sequence[Row], points: Mapping[str, str] | None = None) -> None:
    """The comparison table, on the terminal.

    Args:
        points: what a run is called, by its id, where labels are ambiguous.
    """
    from rich.console import Console
    from rich.table import Table

    from suite.terminal import plain

    if not rows:
        return
    names, scores = metrics(rows), means(rows)
    first = rows[0]
    title = f"{first['model']} (aligned: {first['aligned']}) · {first['dataset']} · judge {first['judge']}"
    table = Table(title=f"{plain(title)}\nper cent [Wilson 95 % interval]; n below the name", title_justify="left")
    for column in ("run", "trained on", "seed"):
        table.add_column(column)
    for name in (*names, *scores):
        sizes = sorted({row[f"{name}/n"] for row in rows if f"{name}/n" in row})
        table.add_column(f"{plain(name.replace('/', chr(10)))}\nn={'/'.join(map(str, sizes))}", justify="right")
    for row in rows:
        trained = f"{row['n_selected']} of {row['n_samples']}" if row["n_selected"] else "–"
        rates, judged = (show(row, name) for name in names), (show_mean(row, name) for name in scores)
        name = (points or {}).get(row["run_id"], row["label"])
        table.add_row(plain(name), trained, str(row["seed"]), *rates, *judged)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for name, values in conditions(rows).items():
        told = plain(f"{name}: {', '.join(values)}")
        console.print(f"[yellow]not equal across rows:[/] {told}", highlight=False)


def latest_sweep(runs: Path) -> Path:
    """The newest folder of runs.

    Raises:
        KeelBenchError: there is none with a finished run.
    """
    sweeps = sorted({f.parent.parent for f in runs.glob("*/*/record.json")})
    if not sweeps:
        raise KeelBenchError(f"no finished run under {runs}; start one with `python -m suite`")
    return sweeps[-1]


@one_line_errors
def main() -> int:
    parser = parser_of("suite.results", __doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, help="runs, a sweep or a run; default: the latest sweep, with --where all runs"
    )
    parser.add_argument("--where", metavar="SQL", help="""a condition, such as "asr/harmbench" > 0.2""")
    parser.add_argument("--from", dest="source", metavar="wandb:ENTITY/PROJECT", help="runs that W&B holds")
    parser.add_argument("--csv", action="store_true", help="all columns, as CSV")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="all columns, into a Parquet file")
    options = parser.parse_args()
    rows = _asked_for(options)
    if options.parquet:
        store.write_parquet(rows, options.parquet)
        print(f"{len(rows)} rows in {options.parquet}")
    if options.csv:
        columns = list(dict.fromkeys(k for row in rows for k in row))
        writer = csv.DictWriter(sys.stdout, columns)
        writer.writeheader()
        writer.writerows(rows)
    elif not options.parquet:
        print_comparison(rows)
    return 0


def _asked_for(options: argparse.Namespace) -> list[Row]:
    runs = runs_folder()
    if options.source is not None:
        if not options.source.startswith(store.WANDB) or options.folder is not None:
            raise KeelBenchError("--from wants wandb:<entity>/<project>, and no folder beside it")
        place = options.source
        rows = store.from_wandb(place.removeprefix(store.WANDB))
    else:
        place = options.folder or (runs if options.where else latest_sweep(runs))
        rows = collect(place)
    if not rows:
        raise KeelBenchError(f"no finished run under {place}")
    if options.where:
        rows, of = store.where(rows, options.where), len(rows)
        if not rows:
            raise KeelBenchError(f"none of {of} runs under {place} has {options.where}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
