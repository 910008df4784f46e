"""The checks before a sweep's first job."""

import os
import sys
from collections.abc import Sequence

from eval.errors import KeelBenchError
from suite.preflight.arguments import parsed
from suite.preflight.findings import Finding

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
    try:
        found = examine(asked, fetch=True)
    except KeelBenchError:
        raise
    except Exception as error:  # a check that breaks on an unknown machine must not keep anybody from running
        print(
            f"warning: the checks broke off ({type(error).__name__}: {error}); starting all the same", file=sys.stderr
        )
        return
    for finding in found:
        if finding.state == "warning":
            print(f"warning: {finding.check}: {_whole(finding)}", file=sys.stderr)
    failed = [_whole(finding) for finding in found if finding.state == "failed"]
    if not failed:
        print(*(f"time: {finding.said}" for finding in found if finding.check == "time"), file=sys.stderr)
    else:
        runs = f"{len(asked.points)} runs" if len(asked.points) > 1 else "run"
        ending = f"nothing was started of the {runs}; `python -m suite.doctor` with the same words tells all checks"
        raise KeelBenchError("\n".join([*failed, ending]))


def _whole(finding: Finding) -> str:
    return f"{finding.said}; {finding.remedy}" if finding.remedy else finding.said
