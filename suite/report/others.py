"""Pages of sweeps that are no fine-tuning runs: FlowLens, drift, lexical diversity."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from suite.report.plots import Plot, short
from suite.report.svg import color_of, figure, inline, style
from suite.storage.tables import read_table

Row = dict[str, Any]


def write_other(sweep: Path) -> list[Path]:
    """Write the pages of such a sweep again from its tables; none where it is one of the main pipeline."""
    for kind, write in _WRITERS.items():
        folders = sorted((f.parent for f in sweep.glob(f"*/{kind}.parquet")), key=lambda f: (len(f.name), f.name))
        if folders:
            return write(sweep, folders)
    return []


def _flowlens(sweep: Path, folders: Sequence[Path]) -> list[Path]:
    from suite.flowlens.page import write_alignment_page, write_page

    pages = [write_page(folder) for folder in folders]
    if (sweep / "alignment.parquet").is_file():
        pairs = read_table(sweep / "alignment.parquet")
        names = list(dict.fromkeys(name for pair in pairs for name in (pair["a"], pair["b"])))
        pages.insert(0, write_alignment_page(sweep, names, pairs))
    return pages


def _drift(sweep: Path, folders: Sequence[Path]) -> list[Path]:
    from suite.drift.page import write_page

    return [write_page(folder) for folder in folders]


def _diversity(sweep: Path, folders: Sequence[Path]) -> list[Path]:
    return [
        write_diversity_page(sweep, [row for folder in folders for row in read_table(folder / "diversity.parquet")])
    ]


_WRITERS: dict[str, Callable[[Path, Sequence[Path]], list[Path]]] = {
    "flowlens": _flowlens,
    "drift": _drift,
    "diversity": _diversity,
}

MEASURED = {
    "entropy_1": "H1, bits",
    "entropy_2": "H2, bits",
    "entropy_3": "H3, bits",
    "msttr": "MSTTR",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
}


def write_diversity_page(sweep: Path, rows: Sequence[Row]) -> Path:
    """Write ``<sweep>/diversity.html``, and return its path."""
    from suite.flowlens.page import write_sections

    columns = {"dataset": "data set", "text": "of", "texts": "texts", "tokens": "tokens", "vocabulary": "vocabulary"}
    columns |= MEASURED
    return write_sections(
        sweep / "diversity.html",
        title="Lexical diversity",
        facts_shown=[
            ("data sets", str(len({row["dataset"] for row in rows}))),
            ("MSTTR segment", f"{rows[0]['segment']} tokens"),
        ],
        reading="Entropies of n-grams in bits, the type-token ratio of segments, the share of distinct n-grams. All "
        "but MSTTR grow with the number of texts: compare sets of equal size.",
        sections=[("Measured", "", [_dots(metric, name, rows) for metric, name in MEASURED.items()])],
        table=[{shown: _shown(row[k]) for k, shown in columns.items()} for row in rows],
        table_title="Every set",
    )


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _dots(metric: str, name: str, rows: Sequence[Row]) -> Plot:
    """A lane a data set; filled: the response alone, hollow: with its query."""
    sets = list(dict.fromkeys(row["dataset"] for row in rows))
    with style():
        drawn = figure(0.5 + 0.26 * len(sets))
        axis = drawn.subplots()
        for kind, filled in (("response", True), ("query and response", False)):
            mine = [row for row in rows if row["text"] == kind and row[metric] is not None]
            axis.plot(
                [row[metric] for row in mine],
                [sets.index(row["dataset"]) for row in mine],
                "o",
                color=color_of(0),
                markerfacecolor=color_of(0) if filled else "none",
                label=kind,
            )
        axis.set_yticks(range(len(sets)), [short(each) for each in sets])
        axis.set_ylim(len(sets) - 0.5, -0.5)
        axis.tick_params(length=0)
        axis.grid(axis="x")
        axis.legend(frameon=False, fontsize=7)
        told = "; ".join(f"{row['dataset']}, {row['text']}: {_shown(row[metric])}" for row in rows)
        return Plot(name, inline(drawn, f"{name}: {told}"))
