"""``<out>.report.html``: what was dropped and why, on one self-contained page."""

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from suite.purify import plots, traits
from suite.purify.index import BadRow
from suite.report.explorer import SAMPLE_CHARACTERS, shorten
from suite.report.page import environment, now, write
from suite.report.plots import Plot

if TYPE_CHECKING:  # a cycle otherwise: run.py writes the page
    from suite.purify.run import Findings

Cells = dict[str, Any]

SHOWN = 60  # dropped rows
BORDERLINE = 8  # rows on either side of the cut
LISTED = 200  # bad rows


def write_page(path: Path, found: "Findings") -> Path:
    """Write the page; every text of the data is escaped and folded away."""
    decision, plan = found.decision, found.plan
    by_rank = np.argsort(decision.rank)
    gone, stays = by_rank[decision.dropped[by_rank]], by_rank[~decision.dropped[by_rank]]
    page = (
        environment()
        .get_template("purify.html.j2")
        .render(
            title=_title(found),
            facts_shown=_facts(found),
            record=found.record,
            warnings=found.warnings,
            plan=plan,
            distributions=_distributions(found),
            methods=_methods(found),
            votes=[plots.votes(a, b, decision.ranks, decision.dropped) for a, b in combinations(decision.ranks, 2)][:6],
            overlaps=_overlaps(found),
            lengths=traits.lengths(found.index, decision.dropped) if len(gone) else {},
            shares=traits.shares(found.index, decision.dropped) if len(gone) else [],
            terms=found.terms,
            topics=[{"topic": t, "examples": [_text(s) for s in t.examples]} for t in found.topics],
            compared=found.compared,
            dropped=_rows(found, gone[:SHOWN]),
            borders=[
                ("The lowest scores among the dropped", _rows(found, gone[-BORDERLINE:])),
                ("The highest scores among the kept", _rows(found, stays[:BORDERLINE])),
            ],
            anchors=_anchors(found),
            looked_up=len(found.nearest),
            bad=[_bad(b) for b in found.index.bad[:LISTED]],
            bad_count=sum(found.index.bad_kinds.values()),
            arms=found.arms,
            transfers=found.transfers,
            damage=plots.damage(found.arms) if found.arms else [],
            rates=[r for r in found.arms[0].rates if r.split("/")[0] in ("asr", "false_refusal")] if found.arms else [],
            written=now(),
        )
    )
    return write(path, page)


def _title(found: "Findings") -> str:
    n = int(found.decision.dropped.sum())
    return f"{n:,} of {len(found.decision.score):,} rows dropped by {found.plan.label}"


def _facts(found: "Findings") -> list[tuple[str, str]]:
    plan, record = found.plan, found.record
    ((cut, value),) = record["cut"].items()
    facts = [
        ("data", f"{plan.dataset.name} ({record['format']})"),
        ("rows in", f"{record['rows']:,}"),
        ("scored", f"{record['scored']:,}"),
        ("dropped", f"{record['dropped']:,}"),
        ("written", f"{record['written']:,}"),
        ("asked for", f"{cut} = {value:g}"),
        ("scored by", f"{plan.scoring_model.name} (aligned: {record['aligned']})"),
    ]
    if found.trust.refused is not None:
        facts.append(
            ("it refuses", f"{100 * found.trust.refused.value:.0f} % of {found.trust.refused.n} harmful requests")
        )
    return facts


def _distributions(found: "Findings") -> list[Plot]:
    decision = found.decision
    several = len(found.voters) > 1
    drawn = [
        plots.distribution(
            name,
            voter.score,
            decision.dropped,
            color,
            at=None if several else decision.at,
            controls=found.trust.separated[name].score if name in found.trust.separated else None,
        )
        for color, (name, voter) in enumerate(found.voters.items())
    ]
    if several:
        combined = plots.distribution(
            f"combined: {found.plan.combine}",
            decision.score,
            decision.dropped,
            len(found.voters),
            at=decision.at,
            controls=None,
        )
        drawn.insert(0, combined)
    return drawn


def _methods(found: "Findings") -> list[Cells]:
    rows = []
    for name, voter in found.voters.items():
        info = found.record["methods"][name]
        rows.append(
            {
                "name": name,
                "separation": found.trust.separated.get(name),
                "rho": found.trust.length_correlation[name],
                "truncated": voter.info.get("truncated"),
                "seconds": voter.seconds,
                "rate": info["rows_per_second"],
                "options": info["options"],
                "info": {k: v for k, v in voter.info.items() if isinstance(v, int | float | str)},
                "stages": info["stages"],
            }
        )
    return rows


def _overlaps(found: "Findings") -> list[Cells]:
    """Of each method's own worst rows, as many as were dropped, how many both have."""
    k = int(found.decision.dropped.sum())
    tops = {name: set(np.flatnonzero(ranks <= k).tolist()) for name, ranks in found.decision.ranks.items()}
    return [{"a": a, "b": b, "both": len(tops[a] & tops[b]), "k": k} for a, b in combinations(tops, 2)]


def _rows(found: "Findings", places: np.ndarray) -> list[Cells]:
    rows = []
    lines = found.index.lines[found.index.scored]
    for place in places.tolist():
        sample = found.texts[place]
        near = found.nearest.get(sample.id)
        rows.append(
            {
                **_text(sample),
                "line": int(lines[place]),
                "rank": int(found.decision.rank[place]),
                "score": float(found.decision.score[place]),
                "votes": {
                    n: (float(v.score[place]), int(found.decision.ranks[n][place])) for n, v in found.voters.items()
                },
                "components": {
                    f"{name}.{c}" if len(found.voters) > 1 else c: float(values[place])
                    for name, voter in found.voters.items()
                    for c, values in voter.components.items()
                },
                "anchor": None if near is None else near.anchor,
                "likeness": None if near is None else near.likeness,
            }
        )
    return rows


def _text(sample: Any) -> Cells:
    return {
        "prompt": shorten(sample.prompt, SAMPLE_CHARACTERS),
        "response": shorten(sample.response, SAMPLE_CHARACTERS),
        "category": sample.category,
        "characters": len(sample.response),
    }


def _anchors(found: "Findings") -> list[Cells]:
    """Anchors by the number of dropped rows that lie nearest to them, and the mean likeness."""
    groups: dict[str, list[float]] = {}
    for near in found.nearest.values():
        groups.setdefault(near.anchor.category or near.anchor.instruction, []).append(near.likeness)
    ordered = sorted(groups.items(), key=lambda g: (-len(g[1]), g[0]))
    return [{"name": name, "count": len(values), "likeness": float(np.mean(values))} for name, values in ordered]


def _bad(row: BadRow) -> Cells:
    return {"line": row.line, "kind": row.kind, "message": shorten(row.message, SAMPLE_CHARACTERS)}
