"""``flowlens.html`` of a run and ``alignment.html`` of a sweep: self-contained pages out of the tables beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, PackageLoader

from suite.flowlens import plots
from suite.quality.plots import heat_map
from suite.report.page import environment, now, write
from suite.report.published import sections as published_sections
from suite.storage.tables import read_table

Row = dict[str, Any]


def write_page(folder: Path) -> Path:
    """Write ``<folder>/flowlens.html`` from the run's tables, and return its path."""
    (row,) = read_table(folder / "flowlens.parquet")
    layers, spectrum = (read_table(folder / f"{name}.parquet") for name in ("layers", "spectrum"))
    facts = [
        ("model", row["model"]),
        ("aligned", row["aligned"]),
        ("prompts", f"{row['prompts']:,} of {row['data']}"),
        ("layers", str(row["layers"])),
        ("intrinsic dimension", f"{row['dimension']:.2f} (TwoNN, {row['dimension_points']:,} states)"),
        ("variance in 3 directions", f"{100 * sum(s['explained'] for s in spectrum[:3]):.1f} %"),
    ]
    if row["adapter"]:
        facts.insert(2, ("adapter", row["adapter"]))
    if row.get("alignment") is not None:
        facts.append(("alignment with the reference", f"{row['alignment']:.3f} (PC{row['alignment/component']})"))
    sections = [
        ("Trajectories", "Mean of the prompts; the band is one standard deviation.", plots.trajectories(layers)),
        (
            "Spectrum",
            "Dotted: the intrinsic dimension, rounded up.",
            [plots.spectrum(spectrum, row["component"])],
        ),
    ]
    if (folder / "stability.parquet").is_file():
        text = "Correlation over the prompts between their values with and without a question mark. Dotted: 0.98. "
        text += f"The trajectories' own correlation, over the layers: {row['stability/trajectory']:.3f}."
        sections.append(("Stability", text, [plots.stability(read_table(folder / "stability.parquet"))]))
    return write_sections(
        folder / "flowlens.html",
        title=f"FlowLens: {row['model']} over {row['prompts']:,} prompts of {row['data']}",
        facts_shown=facts,
        reading="The hidden state of each prompt's last token after every block, without a chat template: all of them "
        "are one cloud of points, whose directions of largest variance are the components.",
        sections=sections,
        table=[{k: (f"{v:.4g}" if isinstance(v, float) else v) for k, v in each.items()} for each in spectrum],
        table_title="Principal directions",
    )


def write_alignment_page(sweep: Path, names: Sequence[str], pairs: Sequence[Row]) -> Path:
    """Write ``<sweep>/alignment.html``: every two runs' alignment, and return its path."""
    values = {(p["a"], p["b"]): p["alignment"] for p in pairs}
    return write_sections(
        sweep / "alignment.html",
        title="FlowLens: alignment",
        facts_shown=[("runs", str(len(names)))],
        reading="|cos| of two runs' principal directions, at the component that is the first run's intrinsic dimension "
        "rounded up: 1 where they point the same way, 0 where they are orthogonal.",
        sections=[("Alignment", "The first run's component decides.", [heat_map("Alignment", names, values)])],
        table=[{k: _shown(p[k]) for k in ("a", "b", "component", "alignment", "pc1", "pc2", "pc3")} for p in pairs],
        table_title="Every two runs",
    )


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write_sections(path: Path, **content: Any) -> Path:
    """Write a page of a heading, facts, sections of plots, published figures beside those in the page's folder where
    its experiment has some, and a table, and return its path."""
    found = environment()
    assert found.loader is not None
    found.loader = ChoiceLoader([PackageLoader("suite.flowlens", ""), found.loader])
    place = "/".join(path.resolve().parent.parts[-2:])
    published = published_sections([], path.parent)
    page = found.get_template("flowlens.html.j2").render(**content, published=published, place=place, written=now())
    return write(path, page)
