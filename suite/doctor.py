"""``python -m suite.doctor [OVERRIDES]``: whether a run or a sweep can work, what it needs and about how long it takes.

python -m suite.doctor                                     # the run that `python -m suite` would start
python -m suite.doctor -m +experiment=demo                 # a sweep
python -m suite.doctor -m +experiment=larf_table1 --fetch  # also download data sets that are only on the hub

Takes what `python -m suite` takes. Nothing is started and no weights are downloaded. The same checks precede every
sweep (SUITE_PREFLIGHT=off: not). Exit status 1 where one failed.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Sequence

from eval.errors import KeelBenchError
from suite.preflight.findings import Finding


def main() -> int:
    """Exit status: 0, 1 where a check failed, 2 where the command line was wrong."""
    arguments = [a for a in sys.argv[1:] if a != "--fetch"]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    from pathlib import Path

    from suite.configuration.experiments import check_asked, entry_point, named, names
    from suite.configuration.overrides import check_names
    from suite.paths import conf_dir
    from suite.preflight.examine import examine
    from suite.preflight.points import read_command_line

    if any(a.startswith("+experiment=") for a in arguments) and not {"-m", "--multirun"} & set(arguments):
        arguments.insert(0, "-m")  # an experiment is a sweep
    try:
        name = named(arguments)
        if name in names() and (other := entry_point(name)) != "suite":
            raise KeelBenchError(f"experiment {name} is one of `python -m {other}`, which checks its own")
        check_names(arguments, Path(conf_dir()))
        check_asked(arguments)
        asked = read_command_line(arguments)
        if asked is None:
            raise KeelBenchError("this command line starts no run")
        found = examine(asked, fetch="--fetch" in sys.argv)
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(found)
    return 1 if any(f.state == "failed" for f in found) else 0


def show(found: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table()
    for column in ("check", "state", "found", "what to do"):
        table.add_column(column, overflow="fold")
    style = {"failed": "red", "warning": "yellow", "note": "dim", "ok": ""}
    for finding in found:
        table.add_row(escape(finding.check), finding.state, escape(finding.said), escape(finding.remedy),
                      style=style[finding.state])  # fmt: skip
    console.print(table)
    failed = sum(f.state == "failed" for f in found)
    console.print(f"{failed} of {len(found)} checks failed." if failed else f"{len(found)} checks, none failed.")


if __name__ == "__main__":
    sys.exit(main())
