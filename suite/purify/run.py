"""A purification: scan → score → cut → explain → write."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from baselines.records import Sample
from suite.provenance import code_fingerprint
from suite.purify import checks, traits
from suite.purify.cut import Decision, decide
from suite.purify.index import Index, chunks
from suite.purify.inputs import Inputs, check
from suite.purify.nearest import Nearest, nearest_anchors
from suite.purify.outputs import appearing, beside, kept_rows, write_record, write_scores
from suite.purify.plan import PurifyPlan
from suite.purify.record import record
from suite.purify.scores import Voter, score_chunks
from suite.purify.transfer import Transfer, transfers
from suite.purify.verify import Arm, choose, damage
from suite.stages.models import LoadedModel, Weights, prepare
from suite.storage.cache import Entry, StageCache
from suite.tracking.run import Tracker

log = logging.getLogger(__name__)

SHOWN = 60  # dropped rows on the page
BORDERLINE = 8  # rows on the page on either side of the cut


@dataclass(frozen=True)
class Findings:
    """All that the page shows; arrays are over the scored rows."""

    plan: PurifyPlan
    index: Index
    voters: Mapping[str, Voter]
    decision: Decision
    texts: Mapping[int, Sample]  # by place among the scored rows; those that the page or a check needs
    nearest: Mapping[str, Nearest]
    trust: checks.Trust
    warnings: list[str]
    terms: list[traits.Term]
    topics: list[traits.Topic]
    compared: tuple[int, int]  # dropped and kept rows that terms and topics were read from
    arms: list[Arm]
    transfers: Mapping[str, Transfer]
    record: Mapping[str, Any]


def run(plan: PurifyPlan, folder: Path, sweep: str) -> str:
    """Carry out ``plan``: the purified file and what accompanies it appear where ``plan.out`` says, all or none.

    Returns:
        The run's id.

    Raises:
        KeelBenchError: anything a user can mend.
    """
    code_fingerprint()  # now: sources may be edited while the run goes on
    inputs = check(plan)
    cache = StageCache(plan.paths.cache)
    name = f"{plan.scoring_model.name}-{plan.dataset.name}-purify-{'-'.join(plan.methods)}"
    with Tracker(
        plan.tracking, folder=folder, name=name, sweep=sweep, job_type="purify", config=_public(plan)
    ) as tracker:
        found = _find(plan, inputs, cache)
        with appearing(plan.out) as work:
            _write(found, inputs, work)
        told = {**found.record, "out": str(plan.out.absolute())}
        write_record(folder / "purify.json", told)
        tracker.summary({k: v for k, v in told.items() if not isinstance(v, dict | list)})
    return str(told["run_id"])


def _find(plan: PurifyPlan, inputs: Inputs, cache: StageCache) -> Findings:
    index, n = inputs.index, len(inputs.index.scored)
    needs_model = any(m.uses_model for m in plan.methods.values())
    # Without a method that reads the model, none is prepared (random, length).
    weights = prepare(plan.scoring_model, plan.compute, cache) if needs_model else Weights(Path(), "none")
    model = LoadedModel(weights, plan.scoring_model, plan.compute)
    entries: list[Entry] = list(model.weights.entries)
    parts = chunks(inputs.reader, index, plan.chunk_rows)
    voters = score_chunks(plan.methods, model, parts, n, seed=plan.seed, compute=plan.compute, cache=cache)
    ids = index.ids[index.scored]
    decision = decide(ids, {name: v.score for name, v in voters.items()}, plan.combine, plan.cut)

    characters = index.response_characters[index.scored].astype(np.float64)
    trust = checks.examine(plan, voters, ids, characters, inputs.prompts, model, cache)
    entries += [*(e for v in voters.values() for e in v.entries), *trust.entries]
    told = checks.warnings(plan.check, {name: v.method for name, v in voters.items()}, trust)
    told += _about_rows(index, decision, plan.duplicates)

    by_rank = np.argsort(decision.rank)
    gone, stays = by_rank[decision.dropped[by_rank]], by_rank[~decision.dropped[by_rank]]
    alike = gone[: plan.nearest_rows]
    sampled = tuple(np.sort(side[np.argsort(ids[side])[: traits.SAMPLED]]) for side in (gone, stays))
    both = np.sort(np.argsort(ids)[: plan.transfer_rows if plan.scorer is not None and needs_model else 0])
    arms = choose(decision.dropped, plan.verify_rows, plan.seed) if plan.verify and len(gone) else {}
    wanted = np.concatenate(
        [alike, gone[:SHOWN], gone[-BORDERLINE:], stays[:BORDERLINE], *sampled, *arms.values(), both]
    )
    texts = _texts(inputs, wanted)
    nearest, looked_up = nearest_anchors(
        [texts[i] for i in alike], {n: v.method for n, v in voters.items()}, model, compute=plan.compute, cache=cache
    )
    entries += looked_up
    outcome: list[Arm] = []
    transferred: dict[str, Transfer] = {}
    if arms or len(both):
        model.drop()
        trained = LoadedModel(prepare(plan.model, plan.compute, cache), plan.model, plan.compute)
        entries += trained.weights.entries
    if len(both):
        share = float(decision.dropped.mean())
        transferred, more = transfers(plan, voters, [texts[i] for i in both], both, share, trained, cache)
        entries += more
    if arms:
        chosen = {name: [texts[i] for i in places] for name, places in arms.items()}
        outcome, more = damage(plan, chosen, inputs.prompts, trained, cache)
        entries += more
    elif plan.verify:
        told.append("verify: nothing was dropped, so there is nothing to compare.")
    dropped_texts, kept_texts = ([texts[i] for i in side] for side in sampled)
    return Findings(
        plan=plan,
        index=index,
        voters=voters,
        decision=decision,
        texts=texts,
        nearest=nearest,
        trust=trust,
        warnings=told,
        terms=traits.terms(dropped_texts, kept_texts),
        topics=traits.topics(dropped_texts, plan.seed),
        compared=(len(dropped_texts), len(kept_texts)),
        arms=outcome,
        transfers=transferred,
        record=record(plan, index, voters, decision, trust, outcome, transferred, entries, told),
    )


def _about_rows(index: Index, decision: Decision, duplicates: str) -> list[str]:
    """Warnings that the rows themselves give cause for."""
    told = []
    if not decision.dropped.any():
        told.append(
            f"Everything was kept: no score is above the threshold (the highest is {decision.score.max():.6g})."
        )
    tied = int((decision.score == decision.at).sum())
    by_lot = tied - int((decision.score[decision.dropped] == decision.at).sum())
    if by_lot and tied > len(decision.score) / 100:
        told.append(
            f"{tied:,} rows share the score at the cut; {tied - by_lot:,} of them were dropped by the order of their "
            "ids, not by their score (criterion: more than 1 % of the rows)."
        )
    foreign = int(index.has("non_english")[index.scored].sum())
    if foreign > len(index.scored) / 100:
        told.append(
            f"{foreign:,} of {len(index.scored):,} rows do not look English (criterion: letters and function words, in "
            "more than 1 % of the rows). "
            "The anchors are English, so scores of other languages are not comparable with those of English rows."
        )
    if index.copies and duplicates == "keep":
        told.append(f"{index.copies:,} rows have the very text of an earlier row (duplicates=drop leaves them out).")
    return told


def _texts(inputs: Inputs, wanted: np.ndarray) -> dict[int, Sample]:
    """The samples at these places among the scored rows."""
    places = set(wanted.tolist())
    found: dict[int, Sample] = {}
    for place, (sample,) in enumerate(chunks(inputs.reader, inputs.index, 1)):
        if place in places:
            found[place] = sample
    return found


def _write(found: Findings, inputs: Inputs, work: Path) -> None:
    from suite.purify.page import write_page

    plan = found.plan
    files = {kind: work / path.name for kind, path in beside(plan.out).items()}
    keep = kept_rows(found.index, found.decision.dropped, plan.on_bad_row)
    write_scores(files, found.index, keep, found.decision, found.voters, found.nearest)
    write_page(files["report.html"], found)
    write_record(files["purify.json"], found.record)
    inputs.table.write(work / plan.out.name, keep)


def _public(plan: PurifyPlan) -> dict[str, Any]:
    """The plan as JSON for W&B, without paths."""
    return {
        "model": plan.model.name,
        "scorer": plan.scoring_model.name,
        "dataset": plan.dataset.name,
        "methods": {
            name: {"name": m.name, **json.loads(json.dumps(asdict(m), default=str))} for name, m in plan.methods.items()
        },
        "combine": plan.combine,
        "cut": asdict(plan.cut),
        "seed": plan.seed,
    }
