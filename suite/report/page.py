"""The page: a sweep's runs, tables and plots poured into the template."""

import base64
import hashlib
import itertools
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from suite.report import explorer, plots, published, tables, tradeoffs
from suite.report.load import by_name, load_qualities, load_sweep
from suite.report.svg import swatch
from suite.statistics.compare import compare
from suite.statistics.outcomes import points_of


def write_report(sweep: Path) -> Path:
    """Write ``<sweep>/report.html`` from the run folders at or below ``sweep``, and return its path.

    Raises:
        KeelBenchError: there is no run, neither finished nor failed.
    """
    runs, failures = load_sweep(sweep)
    qualities = load_qualities(sweep)
    found = compare(points_of(runs))
    rankings, rankings_left = explorer.rankings(runs)
    completions, completions_left = explorer.completions(runs)
    for run in runs:
        run.note_absent()
    page = (
        environment()
        .get_template("page.html.j2")
        .render(
            sweep=sweep.resolve().name,
            written=now(),
            failures=failures,
            runs=runs,
            qualities=qualities,
            legend={name: same[0].color for name, same in by_name(runs).items()},
            title="Filter quality" if qualities and not runs else tables.title(runs),
            heading=tables.heading(runs) if runs else [],
            comparison=tables.comparison(runs, found),
            differences=tables.differences(found),
            published=published.sections(runs, sweep),
            over_seeds=tables.over_seeds(runs, found),
            rates=plots.rates(runs),
            losses=plots.losses(runs),
            distributions=plots.score_distributions(runs),
            categories=plots.categories(runs),
            tradeoffs=tradeoffs.pareto(runs),
            front=tradeoffs.on_the_front(runs),
            keep_fractions=tradeoffs.keep_fractions(runs),
            left_out=plots.left_out(runs),
            rankings=rankings,
            rankings_left=rankings_left,
            completions=completions,
            completions_left=completions_left,
            costs=tables.costs(runs),
            traces=[(run, tables.trace(run)) for run in runs],
            missing=list(itertools.chain.from_iterable(((run, note) for note in run.missing) for run in runs)),
        )
    )
    return write(sweep / "report.html", page)


def environment() -> Environment:
    """Templates of this package, with what all of its pages use."""
    found = Environment(
        loader=PackageLoader("suite.report", ""),
        autoescape=True,  # everything shown was written by models or stands in data sets
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["swatch"] = swatch
    script = Path(__file__).with_name("search.js").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The one script of the page, and the hash by which the page's policy lets it, and nothing else, run.
    found.globals |= {"search": Markup(script), "search_hash": f"sha256-{digest}"}
    return found


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def write(path: Path, page: str) -> Path:
    path.write_text(page, encoding="utf-8", errors="replace")  # an error message may hold half a surrogate pair
    return path
