"""Text that Markdown, LaTeX and CSV take for what it is."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "·": r"$\cdot$", "−": "--"}
_LATEX |= {c: f"\\{c}" for c in "&%$#_{}"}


def plain_markdown(text: str) -> str:
    """Without what Markdown or HTML would take for its own."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in " ".join(text.split()))


def plain_latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def csv_block(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys, with a heading; "" of none."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
