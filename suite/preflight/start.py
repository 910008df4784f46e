"""The checks before a sweep's first job."""

import os
import sys
from collections.abc import Sequence

from eval.errors import KeelBenchError
from suite.preflight.arguments import parsed
from suite.preflight.findings import Finding

SWITCH = "SUITE_PREFLIGHT"  # "off": start without


def before_run(arguments: Sequence[str], entry_point: str = "suite") -> None:
    """Look at every run that the command starts; warnings and the estimate go to standard error.

    Args:
        arguments: in Hydra's terms.
        entry_point: ``suite``, or the name behind ``suite.``: ``purify``, ``flowlens``, ...

    Raises:
        KeelBenchError: all failures, one a line. Nothing has been started then.
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no"):
        return
    if entry_point != "judge" and parsed(arguments) is None:
        return
    from suite.preflight.entry_points import examine_command

    try:
        examined = examine_command(entry_point, arguments, fetch=True)
    except KeelBenchError:
        raise
    except Exception as error:  # a check that breaks on an unknown machine must not keep anybody from running
        print(
            f"warning: the checks broke off ({type(error).__name__}: {error}); starting all the same", file=sys.stderr
        )
        return
    if examined is None:
        return
    found, runs = examined
    for finding in found:
        if finding.state == "warning":
            print(f"warning: {finding.check}: {_whole(finding)}", file=sys.stderr)
    failed = [_whole(finding) for finding in found if finding.state == "failed"]
    if not failed:
        for finding in found:
            if finding.check == "time":
                print(f"time: {finding.said}", file=sys.stderr)
    else:
        of_them = f"{runs} runs" if runs > 1 else "run"
        doctor = "suite.doctor" if entry_point == "suite" else f"suite.doctor {entry_point}"
        ending = f"nothing was started of the {of_them}; `python -m {doctor}` with the same words tells all checks"
        raise KeelBenchError("\n".join([*failed, ending]))


def _whole(finding: Finding) -> str:
    return f"{finding.said}; {finding.remedy}" if finding.remedy else finding.said
