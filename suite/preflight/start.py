"""The checks before a sweep's first job."""

import os
import sys
from collections.abc import Sequence

from eval.errors import KeelBenchError
from suite.preflight.arguments import parsed

SWITCH = "SUITE_PREFLIGHT"  # "off": start without


def before_run(arguments: Sequence[str]) -> None:
    """Look at every run of ``python -m suite ARGUMENTS``; warnings and the estimate go to standard error.

    Raises:
        KeelBenchError: all failures, one a line. Nothing has been started then.
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no"):
        return
    if parsed(arguments) is None:
        return
    from suite.preflight.examine import examine
    from suite.preflight.points import read_command_line

    asked = read_command_line(arguments)
    if asked is None:
        return
    found = examine(asked, fetch=True)
    for finding in found:
        if finding.state == "warning" or finding.check == "time":
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            label = "warning: " if finding.state == "warning" else ""
            print(f"{label}{finding.check}: {finding.said}{remedy}", file=sys.stderr)
    failed = [f"{f.said}{f'; {f.remedy}' if f.remedy else ''}" for f in found if f.state == "failed"]
    if failed:
        runs = f"{len(asked.points)} runs" if len(asked.points) > 1 else "run"
        ending = f"nothing was started of the {runs}; `python -m suite.doctor` with the same words tells all checks"
        raise KeelBenchError("\n".join([*failed, ending]))
