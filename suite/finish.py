"""``python -m suite.finish [SWEEP]``: the end of a sweep that was handed over to Slurm: table, report, what failed.

python -m suite.finish runs/2025-01-31_12-00-00           # the exit status is the sweep's: 1 where a run failed
python -m suite.finish runs/2025-01-31_12-00-00 --wait    # when all of its jobs have ended
"""

import sys
import time
from importlib import import_module
from pathlib import Path

from eval.errors import KeelBenchError
from suite.command_line import one_line_errors, parser_of
from suite.launchers.queue import settle, submitted
from suite.status import WHICH, asked_for


def finish(sweep: Path) -> bool:
    """Sum up ``sweep`` as its entry point would have.

    Returns:
        Whether every run finished.

    Raises:
        KeelBenchError: no launcher handed it over.
    """
    handed = submitted(sweep)
    if handed is None:
        raise KeelBenchError(
            f"{sweep} was not handed over to Slurm; `python -m suite.report {sweep}` writes its report"
        )
    settle(sweep)
    module, _, name = handed.ending.partition(":")
    return bool(getattr(import_module(module), name)(sweep))


@one_line_errors
def main() -> int:
    parser = parser_of("suite.finish", __doc__)
    parser.add_argument("sweep", nargs="?", help=WHICH)
    parser.add_argument("--wait", action="store_true", help="until all jobs have ended")
    options = parser.parse_args()
    sweep = asked_for(options.sweep)
    while left := settle(sweep):
        if not options.wait:
            raise KeelBenchError(f"{left} jobs of {sweep} have not ended; --wait waits for them")
        time.sleep(10)
    return 0 if finish(sweep) else 1


if __name__ == "__main__":
    sys.exit(main())
