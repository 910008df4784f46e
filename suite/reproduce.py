"""``python -m suite.reproduce``: every experiment of the papers on one cache.

python -m suite.reproduce --jobs 2 scale=laptop tracking=disabled # make papers: two at a time, which share the cores
python -m suite.reproduce larf_table1 vcl_table3 scale=laptop     # only these, one after the other
python -m suite.reproduce scale=laptop seed=42                    # vcl_table1, which has no seed, goes without it
"""

import argparse
import importlib
import json
import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError, UnknownNameError
from suite import entry
from suite.configuration.experiments import entry_point, names, sweep_config
from suite.configuration.overrides import check_names
from suite.paths import conf_dir

# Those that share most stages stand apart: one that needs a stage which another computes waits for it.
ORDER = (
    "larf_table1", "vcl_table3", "vcl_table2", "vcl_sensitivity", "larf_table5", "larf_table2", "larf_fig4",
    "larf_fig3", "larf_fig5", "larf_table3", "larf_table4", "larf_fig19", "larf_fig17", "vcl_table1", "flowlens_fig2",
    "flowlens_stability", "flowlens_fig4", "flowlens_fig5",
)  # fmt: skip
# Whose runs an experiment reads.
READS = {
    "larf_fig17": ("larf_table1", "larf_table5"),
    "flowlens_fig4": ("vcl_table3",),
    "flowlens_fig5": ("vcl_table2",),
}
STAGES = "stages.json"


@dataclass(frozen=True)
class Outcome:
    """One experiment carried out."""

    name: str
    sweep: Path
    status: int  # the entry point's exit status
    seconds: float
    runs: int
    stages: Counter[str]  # "stage/key": how often a run of the sweep rested on it
    computed: int

    @property
    def found(self) -> int:
        return self.stages.total() - self.computed


class Experiment:
    """One experiment in a child of this process, which has imported the libraries; what it prints lies beside its
    sweep."""

    def __init__(self, name: str, overrides: Sequence[str], runs: Path):
        self.name = name
        self.sweep = runs / f"{datetime.now(UTC):%Y-%m-%d_%H-%M-%S}_{name}"
        self.sweep.mkdir(parents=True)
        self._start = time.perf_counter()
        self._child: Any = multiprocessing.get_context("fork").Process(
            target=_child, args=(name, list(overrides), self.sweep)
        )
        self._child.start()
        self.ended = self._child.sentinel

    def outcome(self) -> Outcome:
        self._child.join()
        seconds = time.perf_counter() - self._start
        told = json.loads((self.sweep / STAGES).read_text()) if (self.sweep / STAGES).is_file() else {}
        stages, computed = Counter(told.get("stages", {})), int(told.get("computed", 0))
        return Outcome(
            self.name, self.sweep, self._child.exitcode or 0, seconds, int(told.get("runs", 0)), stages, computed
        )


def shared_out(overrides: Sequence[str], experiments: Sequence[str]) -> dict[str, list[str]]:
    """Each experiment's overrides: those whose setting its entry point has, whether or not its other settings fit.

    Raises:
        KeelBenchError: a setting that none of the experiments has.
    """
    known: dict[str, set[str]] = {}
    for name in experiments:
        if (entry_module := entry_point(name)) not in known:
            known[entry_module] = {"hydra", *map(str, sweep_config(name))}
    settings = {override: re.split("[./@]", override.lstrip("+~").split("=")[0])[0] for override in overrides}
    everything = set().union(*known.values())
    if wrong := [str(UnknownNameError("setting", s, everything)) for s in settings.values() if s not in everything]:
        raise KeelBenchError("\n".join(wrong))
    return {name: [o for o in overrides if settings[o] in known[entry_point(name)]] for name in experiments}


def run_experiments(given: Mapping[str, Sequence[str]], runs: Path, jobs: int) -> Iterator[Outcome]:
    """What became of each, as they end; ``jobs`` of them at a time, which share the cores. One that reads another's
    runs waits for it.

    Args:
        given: every experiment's overrides.
    """
    waiting, going = list(given), dict[Any, Experiment]()
    while waiting or going:
        unfinished = {*waiting, *(e.name for e in going.values())}
        ready = [n for n in waiting if not unfinished & {*READS.get(n, ())}]
        for name in ready[: jobs - len(going)]:
            waiting.remove(name)
            experiment = Experiment(name, given[name], runs)
            going[experiment.ended] = experiment
        for ended in wait(list(going)):
            yield going.pop(ended).outcome()


def _child(name: str, overrides: list[str], sweep: Path) -> None:
    with (sweep / "output.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.argv = [
            f"python -m {entry_point(name)}",
            "-m",
            f"+experiment={name}",
            *overrides,
            f"hydra.sweep.dir='{sweep}'",
        ]
        status = 1
        try:
            status = importlib.import_module("suite.__main__").main()
            (sweep / STAGES).write_text(json.dumps(stage_counts(sweep)))
        except SystemExit as stop:  # Hydra's way to say that nothing composed
            status = stop.code if isinstance(stop.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    sys.exit(status)


def stage_counts(sweep: Path) -> dict[str, object]:
    """``runs``, ``stages`` (how many of them rest on each) and ``computed``, out of what a finished sweep left."""
    from suite.results import collect
    from suite.storage.tables import read_table

    rows = collect(sweep)
    for kind in ("flowlens", "drift"):
        rows += [read_table(file)[0] for file in sorted(sweep.glob(f"*/{kind}.parquet"))]
    rested = [json.loads(row["stages"]) for row in rows]
    found = sum(int(row["stages_from_cache"]) for row in rows)
    return {
        "runs": len(rows) or len(list(sweep.glob("*/diversity.parquet"))),
        "stages": Counter(stage for stages in rested for stage in stages),
        "computed": sum(map(len, rested)) - found,
    }


def main() -> int:
    """Exit status: 0, or 1 where an experiment failed, or 2 where the command line was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m suite.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("asked", nargs="+", metavar="EXPERIMENT | OVERRIDE", help="none named: all of them")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time (default: 1)")
    arguments = parser.parse_args()
    asked = [a for a in arguments.asked if "=" not in a]
    overrides = [a for a in arguments.asked if "=" in a]
    if arguments.jobs > 1 and not any(o.startswith("compute.threads=") for o in overrides):
        overrides.append(f"compute.threads={max(1, (os.cpu_count() or 1) // arguments.jobs)}")
    try:
        known = [name for name in ORDER if name in names()]
        for name in asked:
            if name not in known:
                raise UnknownNameError("experiment of a paper", name, known)
        check_names(overrides, Path(conf_dir()))
        given = shared_out(overrides, [n for n in ORDER if n in asked or not asked])
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for library in ("torch", "transformers", "peft", "suite.pipeline", "suite.report"):
        importlib.import_module(library)
    runs = Path(os.environ.get("SUITE_RUNS", "runs")).resolve()
    outcomes, start = [], time.perf_counter()
    for outcome in run_experiments(given, runs, max(1, arguments.jobs)):
        outcomes.append(outcome)
        state = "" if outcome.status == 0 else f"  FAILED ({outcome.status}): {outcome.sweep / 'output.txt'}"
        told = f"{outcome.runs:3} runs, {outcome.computed:4} stages computed, {outcome.found:4} found"
        if without := [o for o in arguments.asked if o in overrides and o not in given[outcome.name]]:
            told += f"  (has no {', '.join(without)})"
        print(f"{outcome.name:20} {outcome.seconds:7.1f} s  {told}{state}", flush=True)
    _print_sum(outcomes, time.perf_counter() - start)
    return int(any(outcome.status for outcome in outcomes))


def _print_sum(outcomes: Sequence[Outcome], seconds: float) -> None:
    """Totals, and how many of the stages served more than one experiment."""
    experiments = Counter(stage for o in outcomes for stage in o.stages)
    computed, found = sum(o.computed for o in outcomes), sum(o.found for o in outcomes)
    shared = sum(n > 1 for n in experiments.values())
    print(
        f"\n{len(outcomes)} experiments, {sum(o.runs for o in outcomes)} runs, {seconds / 60:.1f} minutes. "
        f"{len(experiments)} distinct stages: {computed} computed, {found} times found instead; "
        f"{shared} serve several experiments."
    )
    print("Each: python -m suite.report NAME, and beside the paper's figures python -m suite.papers NAME RUNS")


if __name__ == "__main__":
    assert entry  # its environment variables come before torch
    sys.exit(main())
