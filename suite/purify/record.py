"""``purify.json``: a purification in figures, without a word of the data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from suite.provenance import code_fingerprint
from suite.purify.checks import Separation, Trust
from suite.purify.cut import Decision
from suite.purify.index import BEYOND_LIMIT, DUPLICATE, Index
from suite.purify.outputs import kept_rows
from suite.purify.plan import PurifyPlan
from suite.purify.scores import Voter
from suite.purify.transfer import Transfer
from suite.purify.verify import Arm
from suite.storage.cache import Entry, fingerprint


def record(
    plan: PurifyPlan,
    index: Index,
    voters: Mapping[str, Voter],
    decision: Decision,
    trust: Trust,
    arms: Sequence[Arm],
    transfers: Mapping[str, Transfer],
    entries: Sequence[Entry],
    told: Sequence[str],
) -> dict[str, Any]:
    """The run's figures, as JSON."""
    keep = kept_rows(index, decision.dropped, plan.on_bad_row)
    return {
        "run_id": fingerprint([e.key for e in entries])[:12],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": plan.dataset.name,
        "format": index.format,
        "methods": {
            name: {
                "options": json.loads(json.dumps(asdict(v.method), default=str)),
                "info": v.info,
                "seconds": v.seconds,
                "rows_per_second": len(v.score) / v.seconds if v.seconds else None,
                "length_correlation": trust.length_correlation[name],
                "controls": None if name not in trust.separated else _separation(trust.separated[name]),
                "stages": [f"{e.stage}/{e.key}" for e in v.entries],
            }
            for name, v in voters.items()
        },
        "combine": plan.combine if len(voters) > 1 else None,
        "cut": {k: v for k, v in asdict(plan.cut).items() if v is not None},
        "lowest_dropped_score": None if np.isnan(decision.at) else decision.at,
        "rows": len(index.state),
        "scored": len(decision.score),
        "dropped": int(decision.dropped.sum()),
        "written": int(keep.sum()),
        "bad": index.bad_kinds,
        "on_bad_row": plan.on_bad_row,
        "duplicates": index.copies,
        "duplicates_dropped": index.count(DUPLICATE),
        "outside_limit": index.count(BEYOND_LIMIT),
        "refused": None if trust.refused is None else asdict(trust.refused),
        "verify": [{**asdict(a), "rates": {k: asdict(r) for k, r in a.rates.items()}} for a in arms],
        "transfer": {name: asdict(t) for name, t in transfers.items()},
        "warnings": told,
        "scoring_model": plan.scoring_model.name,
        "aligned": plan.scoring_model.align.name if plan.scoring_model.align else "none",
        "trained_model": plan.model.name if arms or transfers else None,
        "seed": plan.seed,
        "code": code_fingerprint(),
        "stages": [f"{e.stage}/{e.key}" for e in entries],
    }


def _separation(found: Separation) -> dict[str, Any]:
    return {"n": found.controls, "auroc": found.auroc, "low": found.low, "high": found.high}
