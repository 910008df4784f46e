"""``python -m suite.report [SWEEP_FOLDER]``: write a sweep's ``report.html`` again, from what lies on disk.

python -m suite.report                  # the latest sweep under runs/
python -m suite.report runs/2025-01-31_12-00-00
"""

import argparse
import os
import sys
from pathlib import Path

from eval.errors import KeelBenchError
from suite.report import write_report
from suite.results import latest_sweep


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m suite.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sweep", nargs="?", type=Path, help="folder of a sweep; default: the latest one under runs/")
    options = parser.parse_args()
    try:
        print(write_report(options.sweep or latest_sweep(Path(os.environ.get("SUITE_RUNS", "runs")))))
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
