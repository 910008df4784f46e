"""Every entry point that asks for a model or a judge: its configuration, its plan, its checks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError, UnknownNameError
from suite.preflight import measurements
from suite.preflight.checks import Checks
from suite.preflight.examine import examine
from suite.preflight.findings import Finding
from suite.preflight.points import CommandLine, Point, read_command_line
from suite.preflight.work import Stage


@dataclass(frozen=True)
class EntryPoint:
    """``python -m suite.<name>``, other than the main pipeline."""

    planned: Callable[[Mapping[str, Any]], Any]
    look: Callable[[Checks, Sequence[Any]], set[Stage]]


def examine_command(name: str, arguments: Sequence[str], *, fetch: bool) -> tuple[list[Finding], int] | None:
    """What can be found out about a command before its first job, and how many runs it stands for; None where it
    starts none.

    Args:
        name: ``suite``, or an entry point's: ``purify``.
        arguments: the command's own, in Hydra's terms.
        fetch: download a data set that is only on the hub, as its run would; model weights are never downloaded.

    Raises:
        KeelBenchError: Hydra cannot compose what the runs share.
        UnknownNameError: no such entry point.
    """
    if name == "suite":
        from suite.plan import plan_from_config

        main = read_command_line(arguments, "config", plan_from_config)
        return None if main is None else (examine(main, fetch=fetch), len(main.points))
    if name == "judge":
        return examine_measurement(_rejudging(arguments), measurements.of_rejudging, fetch=fetch), 1
    entry = _entry_point(name)
    asked = read_command_line(arguments, name, entry.planned)
    return None if asked is None else (examine_measurement(asked, entry.look, fetch=fetch), len(asked.points))


def examine_measurement(
    asked: CommandLine[Any], look: Callable[[Checks, Sequence[Any]], set[Stage]], *, fetch: bool
) -> list[Finding]:
    """The shared checks and the entry point's own, in one list. How long it will take is not estimated."""
    checks = Checks(asked, fetch=fetch)
    checks.configurations()
    if plans := asked.plans:
        left = look(checks, plans)
        checks.told_machine()
        checks.disk(plans[0].paths.cache, sum(stage.output_bytes for stage in left), len(plans))
    return checks.findings.found


def _entry_point(name: str) -> EntryPoint:
    from suite.auditing.plan import audit_plan
    from suite.diversity import diversity_plan
    from suite.drift.plan import drift_plan
    from suite.purify.plan import purify_plan
    from suite.quality.plan import quality_plan

    known = {
        "purify": EntryPoint(purify_plan, measurements.of_purify),
        "filter_quality": EntryPoint(quality_plan, measurements.of_quality),
        "flowlens": EntryPoint(_flowlens_plan, measurements.of_flowlens),
        "drift": EntryPoint(drift_plan, measurements.of_drift),
        "diversity": EntryPoint(diversity_plan, measurements.of_diversity),
        "judge_audit": EntryPoint(audit_plan, measurements.of_audit),
    }
    if name not in known:
        raise UnknownNameError("entry point", name, known)
    return known[name]


def _flowlens_plan(values: Mapping[str, Any]) -> Any:
    from suite.flowlens.plan import flowlens_plan

    if values["reference"] == "first":  # this sweep's own first point, of which nothing is there yet
        values = {**values, "reference": None}
    return flowlens_plan(values)


def _rejudging(arguments: Sequence[str]) -> CommandLine[Any]:
    """``RUN judge=NAME …``, which is no Hydra sweep."""
    from suite.judging.plan import composed, rejudge_plan

    folders = [a for a in arguments if "=" not in a and not a.startswith("-")]
    if len(folders) != 1:
        raise KeelBenchError("judge: one folder of a run or a sweep, and judge=NAME")
    values = composed([a for a in arguments if "=" in a])
    try:
        point = Point((), rejudge_plan(Path(folders[0]), values))
    except KeelBenchError as error:
        point = Point((), None, str(error))
    return CommandLine((point,), True, Path(folders[0]))
