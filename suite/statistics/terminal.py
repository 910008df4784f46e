"""The differences, on a terminal."""

import sys

from suite.statistics.compare import Comparison, Difference, NotCompared


def print_differences(found: Comparison) -> None:
    """A table of every tested difference, the surviving ones in bold, and every pair that was not tested."""
    from rich.console import Console
    from rich.table import Table

    from suite.terminal import plain

    console = Console(width=None if sys.stdout.isatty() else 160)
    if found.differences:
        title = (
            f"{len(found.differences)} paired tests on the same prompts, in points of per cent [bootstrap 95 %]; "
            "bold: holds after Holm's correction"
        )
        table = Table(title=title, title_justify="left")
        table.add_column("point, less reference")
        for column in ("rate", "difference", "more : fewer", "prompts × seeds", "p", "p (Holm)", "n could show"):
            table.add_column(column, justify="left" if column == "rate" else "right")
        for d in found.differences:
            table.add_row(
                f"{plain(d.point)} − {plain(d.reference)}", plain(d.rate),
                f"{100 * d.difference:+.1f} [{100 * d.low:.1f}, {100 * d.high:.1f}]", f"{d.more} : {d.fewer}",
                f"{d.prompts} × {d.seeds}", shown_p(d.p), shown_p(d.p_holm), shown_smallest(d),
                style="bold" if d.survives else None,
            )  # fmt: skip
        console.print(table)
    for pair in found.not_compared:
        console.print(f"[yellow]not compared:[/] {plain(why_not(pair))}", highlight=False)


def shown_p(p: float) -> str:
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def shown_smallest(d: Difference) -> str:
    """In points of per cent."""
    return "nothing" if d.smallest > 1 else f"{100 * d.smallest:.1f}"


def why_not(pair: NotCompared) -> str:
    rate = f" in {pair.rate}" if pair.rate else ""
    return f"{pair.point} with {pair.reference}{rate}: {'; '.join(pair.reasons)}"
