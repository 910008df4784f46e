"""The comparison table as text for a paper or a notebook: Markdown, LaTeX (booktabs), CSV."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from suite.report.escaping import csv_block, plain_latex, plain_markdown
from suite.report.load import Run, by_name, load_sweep
from suite.report.published import sections
from suite.report.published_text import as_csv, latex, markdown
from suite.report.tables import KINDS, Cells, over_seeds
from suite.results import Row, conditions, metrics
from suite.statistics.compare import Comparison, compare, difference_rows
from suite.statistics.outcomes import points_of
from suite.statistics.terminal import shown_p, shown_smallest, why_not


def render(sweeps: Sequence[Path], form: str) -> str:
    """The comparison as ``form``, md, latex or csv, and behind it published figures with ours; several sweeps, such as
    one a seed, count as one.

    Raises:
        KeelBenchError: there is no run, neither finished nor failed.
    """
    runs, _ = load_sweep(*sweeps)
    found = compare(points_of(runs))
    papers = sections(runs, *sweeps)
    if papers and not runs:  # of another entry point: FlowLens, drift, lexical diversity
        return "\n".join({"md": markdown, "latex": latex, "csv": as_csv}[form](papers))
    comparison = {"md": _markdown, "latex": _latex, "csv": _csv}[form](runs, found)
    return "\n".join([comparison, *{"md": markdown, "latex": latex, "csv": as_csv}[form](papers)])


def _summary(runs: Sequence[Run], found: Comparison) -> list[Cells]:
    """One line a point: from the seeds' means where there are several, else from the only run."""
    return over_seeds(runs, found, always=True)


def _headings(runs: Sequence[Run]) -> list[str]:
    return ["", *(f"{KINDS.get(c.split('/')[0], c.split('/')[0])} {c.split('/', 1)[1]}" for c in _columns(runs))]


def _columns(runs: Sequence[Run]) -> list[str]:
    return metrics([run.row for run in runs])


def _lines(runs: Sequence[Run], found: Comparison, strong: Callable[[str], str], plain: Callable[[str], str],
           plus_minus: str) -> list[list[str]]:  # fmt: skip
    lines = []
    for row in _summary(runs, found):
        cells = [plain(f"{row['name']} ({row['seeds']} seeds)" if row["seeds"] > 1 else row["name"])]
        for cell in row["cells"]:
            if cell is None:
                cells.append("–" if plus_minus == "±" else "--")
                continue
            value = f"{cell['mean']:.1f}" + (f" {plus_minus} {cell['sd']:.1f}" if cell["sd"] is not None else "")
            interval = f" [{cell['low']:.1f}, {cell['high']:.1f}]" if cell["low"] is not None else ""
            cells.append((strong(value) if cell["survives"] else value) + interval)
        lines.append(cells)
    return lines


def _notes(runs: Sequence[Run], found: Comparison) -> list[str]:
    several = any(len(same) > 1 for same in by_name(runs).values())
    notes = [
        "Per cent. ASR: harmful requests answered; false refusal: harmless ones refused. "
        + ("Mean ± sd over seeds [95 %, bootstrapped over seeds × prompts]." if several else "[Wilson 95 % interval].")
    ]
    if found.differences:
        notes.append(
            f"Bold: differs from {' and '.join(found.references)} (paired exact test on the same prompts, p < 0.05 "
            f"after Holm's correction for {len(found.differences)} tests, and the interval over seeds × prompts leaves "
            "out 0)."
        )
    notes += [f"Not equal across rows: {name}: {', '.join(values)}." for name, values in _unequal(runs).items()]
    notes += [f"Not compared: {why_not(pair)}." for pair in found.not_compared]
    return notes


def _unequal(runs: Sequence[Run]) -> dict[str, list[str]]:
    return conditions([run.row for run in runs])


def _markdown(runs: Sequence[Run], found: Comparison) -> str:
    plain = plain_markdown
    lines = _lines(runs, found, lambda text: f"**{text}**", plain, "±")
    out = [
        _md_row(map(plain, _headings(runs))),
        _md_row(["---", *["---:"] * len(_columns(runs))]),
        *map(_md_row, lines),
    ]
    out += ["", *(f"{plain(note)}  " for note in _notes(runs, found))]
    if found.differences:
        heads = (
            "difference",
            "rate",
            "points [95 %]",
            "more : fewer",
            "prompts × seeds",
            "p",
            "p (Holm)",
            "n could show",
        )
        out += ["", _md_row(heads), _md_row(["---", "---", *["---:"] * 6])]
        for d in found.differences:
            shown = f"{100 * d.difference:+.1f}"
            cells = (plain(f"{d.point} − {d.reference}"), plain(d.rate),
                     f"{f'**{shown}**' if d.survives else shown} [{100 * d.low:.1f}, {100 * d.high:.1f}]",
                     f"{d.more} : {d.fewer}", f"{d.prompts} × {d.seeds}", shown_p(d.p), shown_p(d.p_holm),
                     shown_smallest(d))  # fmt: skip
            out.append(_md_row(cells))
    return "\n".join(out) + "\n"


def _md_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _latex(runs: Sequence[Run], found: Comparison) -> str:
    plain = plain_latex
    lines = _lines(runs, found, lambda text: f"\\textbf{{{text}}}", plain, "$\\pm$")
    body = [" & ".join(line) + r" \\" for line in ([plain(h) for h in _headings(runs)], *lines)]
    notes = [f"% {note}" for note in _notes(runs, found)]
    return "\n".join(
        [*notes, rf"\begin{{tabular}}{{l{'r' * len(_columns(runs))}}}", r"\toprule", body[0], r"\midrule", *body[1:],
         r"\bottomrule", r"\end{tabular}", ""]
    )  # fmt: skip


def grid(runs: Sequence[Run], found: Comparison) -> list[Row]:
    """One row a point and rate: the mean over seeds, and its difference from the reference; shares, not per cent."""
    differences = {(d["point"], d["rate"]): d for d in difference_rows(found) if d["reference"] in found.references}
    tested = ("reference", "difference", "low", "high", "p", "p_holm", "survives", "smallest")
    rows = []
    for row in _summary(runs, found):
        for column, cell in zip(_columns(runs), row["cells"], strict=True):
            if cell is not None:
                shares = {k: None if cell[k] is None else cell[k] / 100 for k in ("mean", "sd", "low", "high")}
                d = differences.get((row["name"], column), {})
                rows.append(
                    {"point": row["name"], "rate": column, "seeds": row["seeds"], "mean": shares["mean"],
                     "sd": shares["sd"], "mean_low": shares["low"], "mean_high": shares["high"],
                     **{k: d.get(k) for k in tested}}
                )  # fmt: skip
    return rows


def _csv(runs: Sequence[Run], found: Comparison) -> str:
    return csv_block(grid(runs, found))
