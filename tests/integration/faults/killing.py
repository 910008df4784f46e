"""``python -m tests.integration.faults.killing --kills 50``: a sweep killed at random moments, again and again.

Each round starts from an empty cache. The sweep is killed (SIGKILL) after a random time and started again by the
same command, until one attempt gets to its end; its tables must then equal those of an undisturbed sweep byte for byte,
times and costs left out.
"""

import argparse
import json
import random
import re
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from suite.status import progress
from tests.integration.faults.launcher import Launcher
from tests.integration.faults.small_sweep import (
    arguments,
    differences,
    leftovers,
    make_model,
    newest_sweep,
    only_sweep,
    rows_lost,
)


@dataclass
class Outcome:
    kills: int = 0
    rounds: int = 0
    seconds: float = 0.0  # of an undisturbed sweep
    rows_lost: int = 0
    different: list[str] = field(default_factory=list)  # tables that are not the same, byte for byte
    left_behind: list[str] = field(default_factory=list)  # in a cache, after the sweep's end
    not_gone: list[str] = field(default_factory=list)  # killed points of which suite.status says something else
    went_on: int = 0  # stages taken up from where a kill had stopped them
    moments: Counter[str] = field(default_factory=Counter)  # what was going on when the sweep was killed


def kill_at_random(launcher: Launcher, model: Path, folder: Path, *, kills: int, seed: int) -> Outcome:
    """Kill sweeps ``kills`` times; everything lies in ``folder``.

    Raises:
        AssertionError: a sweep that was not killed ended with an error.
    """
    dice, outcome, log = random.Random(seed), Outcome(), folder / "log"
    plain = launcher.sweep(arguments(model, folder / "cache", folder / "undisturbed"), log)
    assert plain.status == 0, plain.output
    undisturbed, outcome.seconds = only_sweep(folder / "undisturbed"), plain.seconds
    while outcome.kills < kills:
        outcome.rounds += 1
        cache, runs = folder / f"cache-{outcome.rounds}", folder / f"runs-{outcome.rounds}"
        while True:
            moment = dice.uniform(0, plain.seconds) if outcome.kills < kills else None
            attempt = launcher.sweep(arguments(model, cache, runs), log, kill_after=moment)
            outcome.went_on += attempt.output.count("from where an earlier job was stopped")
            if not attempt.killed:
                assert attempt.status == 0, attempt.output
                break
            outcome.kills += 1
            outcome.moments[_moment(attempt.output)] += 1
            outcome.not_gone += _not_gone(runs)
        sweep = newest_sweep(runs)
        outcome.rows_lost += rows_lost(sweep, undisturbed)
        outcome.different += [f"{sweep.name}/{name}" for name in differences(sweep, undisturbed, folder)]
        outcome.left_behind += leftovers(cache)
    return outcome


def _moment(output: str) -> str:
    told = re.findall(r"INFO (\w+) .*: (computing|done|from the cache|waiting)", output)
    if not told:
        return "starting"
    stage, what = told[-1]
    return stage if what == "computing" else "between stages, or summing up"


def _not_gone(runs: Path) -> list[str]:
    """Points of a killed sweep that neither are finished nor are said to be gone."""
    if not runs.is_dir() or not list(runs.glob("*/*/status.json")):
        return []
    sweep = max(f.parent.parent for f in runs.glob("*/*/status.json"))
    return [f"{sweep.name}/{job.name}: {job.state}" for job in progress(sweep).jobs if job.state not in
            ("finished", "gone")]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.faults.killing", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Launcher() as launcher:
        model = make_model(Path(folder) / "model")
        outcome = kill_at_random(launcher, model, Path(folder), kills=options.kills, seed=options.seed)
    print(json.dumps({**asdict(outcome), "moments": dict(outcome.moments)}, indent=1))  # asdict miscounts a Counter
    lost = [outcome.different, outcome.left_behind, outcome.not_gone]
    if outcome.rows_lost or any(lost):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
