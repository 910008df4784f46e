"""``python -m suite.judge RUN judge=NAME``: another judge on the stored completions of finished runs.

python -m suite.judge runs/2026-05-01_12-00-00/0 judge=llama_guard       # one run
python -m suite.judge runs/2026-05-01_12-00-00 judge=rubric              # every run of a sweep
python -m suite.judge RUN judge=rubric judge.server=http://localhost:8000/v1 judge.key_variable=null judge.model=NAME

Verdicts come to lie in ``RUN/judged/<judge>/``, rates join the run's record under that judge's name; what the run's own
judge said stays as it is.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from eval.errors import KeelBenchError
from suite.preflight.start import before_run

if TYPE_CHECKING:
    from suite.judging.plan import RejudgePlan


def main() -> int:
    """Exit status: 0, 1 where a run could not be judged or a check before the first failed, 2 where the command line
    was wrong."""
    about = __doc__ or ""
    parser = argparse.ArgumentParser(
        prog="python -m suite.judge", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run, or of a sweep: then all its finished runs")
    parser.add_argument(
        "overrides", nargs="+", metavar="judge=NAME", help="the judge, and settings such as judge.model=…"
    )
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    for noisy in ("httpx", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from suite.judging.plan import composed, rejudge_plan

    try:
        values = composed(options.overrides)
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        plan = rejudge_plan(options.run, values)
        before_run([str(options.run), *options.overrides], "judge")
        _judge_all(plan)
    except KeelBenchError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    return 0


def _judge_all(plan: "RejudgePlan") -> None:
    from suite.judging.rejudging import print_rates, rejudge
    from suite.stages.judging import with_weights
    from suite.storage.cache import StageCache

    judge = with_weights(plan.judge)
    judge.check()
    cache = StageCache(plan.paths.cache)
    print_rates([rejudge(run, judge, cache) for run in plan.runs])


if __name__ == "__main__":
    sys.exit(main())
