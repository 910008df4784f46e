"""Published figures beside ours as text: Markdown, LaTeX (longtable and booktabs), CSV."""

from collections.abc import Callable, Sequence

from suite.report.escaping import csv_block, markdown_row, plain_latex, plain_markdown
from suite.report.published import Figure, Line, Section, flat_rows


def markdown(found: Sequence[Section]) -> list[str]:
    """One text a table: its heading, three lines a row (published, ours, difference), its notes."""
    texts = []
    for part in found:
        width = len(part.table.keys)
        heads = [*part.table.keys[:-1], "", *(f"{column}, {unit}" for column, unit in part.columns)]
        out = [plain_markdown(f"{part.table.name}: {part.head}"), ""]
        out += [markdown_row(map(plain_markdown, heads)), markdown_row(["---"] * width + ["---:"] * len(part.columns))]
        out += [markdown_row(cells) for cells in _cells(part, plain_markdown, lambda mark: f"<sup>{mark}</sup>")]
        out += ["", *(f"<sup>{mark}</sup> {plain_markdown(note)}  " for mark, note in part.notes)]
        texts.append("\n".join(out) + "\n")
    return texts


def latex(found: Sequence[Section]) -> list[str]:
    """One longtable a table; its notes stand under it."""
    texts = []
    for part in found:
        keys, columns = len(part.table.keys) - 1, len(part.columns)
        heads = [*part.table.keys[:-1], "", *(f"{column}, {unit}" for column, unit in part.columns)]
        out = [f"% {part.table.name}: {part.head}. Needs booktabs and longtable."]
        out += [rf"\begin{{longtable}}{{{'l' * (keys + 1)}{'r' * columns}}}", r"\toprule"]
        out += [" & ".join(map(plain_latex, heads)) + r" \\", r"\midrule", r"\endhead"]
        for line, cells in zip(
            part.lines, _cells(part, plain_latex, lambda mark: rf"\textsuperscript{{{mark}}}"), strict=True
        ):
            if line.reason:
                cells = [*cells[: keys + 1], rf"\multicolumn{{{columns}}}{{l}}{{{plain_latex(line.reason)}}}"]
            out.append(" & ".join(cells) + r" \\")
        out += [r"\bottomrule", r"\end{longtable}"]
        out += [rf"\par\noindent\textsuperscript{{{mark}}} {plain_latex(note)}" for mark, note in part.notes]
        texts.append("\n".join(out) + "\n")
    return texts


def as_csv(found: Sequence[Section]) -> list[str]:
    """All tables as one block, a row a cell, with shares and notes in full."""
    rows = flat_rows(found)
    return [csv_block(rows)] if rows else []


def _cells(part: Section, plain: Callable[[str], str], mark: Callable[[str], str]) -> list[list[str]]:
    """Each line's cells: the address where it begins, which line it is, the figures."""
    lines = []
    previous: tuple[str, ...] = ()
    for line in part.lines:
        address = line.address if line.address != previous else ("",) * len(line.address)
        previous = line.address
        lines.append([*map(plain, address), line.kind, *_figures(line, len(part.columns), plain, mark)])
    return lines


def _figures(line: Line, columns: int, plain: Callable[[str], str], mark: Callable[[str], str]) -> list[str]:
    if line.reason:
        return [plain(line.reason), *[""] * (columns - 1)]

    def cell(figure: Figure) -> str:
        return plain(f"{figure.text} {figure.interval}".strip()) + (mark(figure.mark) if figure.mark else "")

    return [cell(figure) for figure in line.figures]
