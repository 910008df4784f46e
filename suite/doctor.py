"""``python -m suite.doctor [OVERRIDES]``: whether a run or a sweep can work, what it needs and about how long it takes.

python -m suite.doctor                                     # the run that `python -m suite` would start
python -m suite.doctor -m +experiment=demo                 # a sweep
python -m suite.doctor -m +experiment=larf_table1 --fetch  # also download data sets that are only on the hub
python -m suite.doctor +experiment=flowlens_fig2           # of whichever entry point the experiment is
python -m suite.doctor purify dataset.path=mine.jsonl method=larf keep=0.8 out=clean.jsonl
python -m suite.doctor judge runs/<sweep> judge=rubric

Takes what `python -m suite` takes, or behind its name what another entry point takes: purify, filter_quality, flowlens,
drift, diversity, judge, judge_audit. Nothing is started and no weights are downloaded. The same checks precede every
command (SUITE_PREFLIGHT=off: not). Exit status 1 where one failed.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Sequence
from pathlib import Path

from eval.errors import KeelBenchError
from suite.preflight.findings import Finding


def main() -> int:
    """Exit status: 0, 1 where a check failed, 2 where the command line was wrong."""
    arguments = [a for a in sys.argv[1:] if a != "--fetch"]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    from suite.configuration.experiments import check_asked
    from suite.configuration.overrides import check_names
    from suite.paths import conf_dir
    from suite.preflight.entry_points import examine_command

    if any(a.startswith("+experiment=") for a in arguments) and not {"-m", "--multirun"} & set(arguments):
        arguments.insert(0, "-m")  # an experiment is a sweep
    try:
        name, arguments = asked_of(arguments)
        check_names(arguments, Path(conf_dir()))
        if name != "judge":
            check_asked(arguments)
        examined = examine_command(name, arguments, fetch="--fetch" in sys.argv)
        if examined is None:
            raise KeelBenchError("this command line starts no run")
        found, _ = examined
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(found)
    return 1 if any(f.state == "failed" for f in found) else 0


def asked_of(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The entry point that a command line is about, and its own arguments in Hydra's terms.

    It is named as the first word (``purify``, or ``suite.purify``), else by the experiment, else the main pipeline.

    Raises:
        KeelBenchError: an experiment of another entry point than the one named, or arguments that it does not take.
    """
    from suite.configuration.experiments import entry_point, named, names

    rest = list(arguments)
    first = next((a for a in rest if not a.startswith("-")), "")
    name = ""
    if first and "=" not in first:
        rest.remove(first)
        name = first.removeprefix("suite.")
    experiment = named(rest)
    if experiment in names():
        assert experiment is not None
        other = entry_point(experiment).removeprefix("suite.")
        if name not in ("", other):
            raise KeelBenchError(f"experiment {experiment} is one of `python -m {entry_point(experiment)}`")
        name = other
    if name == "purify":
        from suite.purify.arguments import translated

        rest = translated(rest)
    return name or "suite", rest


def show(found: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    from suite.terminal import plain

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table()
    for column in ("check", "state", "found", "what to do"):
        table.add_column(column, overflow="fold")
    style = {"failed": "red", "warning": "yellow", "note": "dim", "ok": ""}
    for finding in found:
        table.add_row(plain(finding.check), finding.state, plain(finding.said), plain(finding.remedy),
                      style=style[finding.state])  # fmt: skip
    console.print(table)
    failed = sum(f.state == "failed" for f in found)
    console.print(f"{failed} of {len(found)} checks failed." if failed else f"{len(found)} checks, none failed.")


if __name__ == "__main__":
    sys.exit(main())
