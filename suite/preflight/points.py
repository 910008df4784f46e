"""A command line as the runs it stands for, composed as Hydra will compose them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from eval.errors import KeelBenchError
from suite.configuration.overrides import no_value
from suite.paths import conf_dir
from suite.preflight.arguments import parsed

P = TypeVar("P")  # the plan of an entry point: RunPlan, PurifyPlan, ...

_LOCAL_LAUNCHERS = ("hydra._internal.", "hydra_plugins.hydra_joblib_launcher")


@dataclass(frozen=True)
class Point(Generic[P]):
    """One run: what was typed for it alone, and its plan or why there is none."""

    overrides: tuple[str, ...]
    plan: P | None
    problem: str = ""


@dataclass(frozen=True)
class CommandLine(Generic[P]):
    """All runs of a command line."""

    points: tuple[Point[P], ...]
    local: bool  # whether the jobs run on this machine
    runs: Path  # where their folders will lie
    at_once: bool = False  # whether several of them may run at a time

    @property
    def plans(self) -> list[P]:
        """Of the points that have one."""
        return [point.plan for point in self.points if point.plan is not None]


def read_command_line(
    arguments: Sequence[str], config: str, planned: Callable[[Mapping[str, Any]], P]
) -> CommandLine[P] | None:
    """The runs that a command line would start; None where it starts none (``arguments.parsed``).

    Args:
        arguments: in Hydra's terms.
        config: the entry point's own configuration, such as ``config`` or ``purify``.
        planned: a plan of the resolved values.

    Raises:
        KeelBenchError: Hydra cannot compose what they share.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    asked = parsed(arguments)
    if asked is None:
        return None
    if asked.config_dir:
        asked.overrides.append(f"hydra.searchpath=[file://{Path(asked.config_dir).resolve()}]")
    if any(override.startswith("hydra/launcher=") for override in asked.overrides):
        from suite.launchers.plugin import register

        register()
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            mode = RunMode.MULTIRUN if asked.multirun else RunMode.RUN
            shared = hydra.compose_config(asked.config_name or config, asked.overrides, run_mode=mode)
            several = asked.multirun or shared.hydra.mode == RunMode.MULTIRUN
            lines = _points(shared.hydra, asked.overrides) if several else [tuple(asked.overrides)]
            composed = [(line, _composed(hydra, asked.config_name or config, line)) for line in lines]
            launcher = str(shared.hydra.launcher.get("_target_", ""))
            runs = Path(str(shared.paths.runs)).expanduser()
    except (HydraException, OmegaConfBaseException) as error:
        raise KeelBenchError(_told(error)) from error
    common = set.intersection(*(set(line) for line in lines)) if len(lines) > 1 else set()
    points = tuple(_point(tuple(o for o in line if o not in common), values, planned) for line, values in composed)
    one_by_one = launcher.startswith("hydra._internal.") or len(points) == 1
    return CommandLine(points, launcher.startswith(_LOCAL_LAUNCHERS), runs, at_once=not one_by_one)


def _points(hydra: Any, typed: Sequence[str]) -> list[tuple[str, ...]]:
    """Each point's overrides, as Hydra's own sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweeper = str(hydra.sweeper.get("_target_", ""))
    if not sweeper.endswith("basic_sweeper.BasicSweeper"):
        raise KeelBenchError(f"hydra.sweeper {sweeper}: only Hydra's own sweeper says beforehand what it will run")
    overrides = [f"{k}={v}" for k, v in (hydra.sweeper.get("params") or {}).items()] + list(typed)
    parsed = OverridesParser.create().parse_overrides(overrides=overrides)
    return [tuple(line) for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for line in batch]


def _composed(hydra: Any, config: str, line: Sequence[str]) -> dict[str, Any] | str:
    """A point's resolved values, or what is wrong with it."""
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    try:
        composed = hydra.compose_config(config, list(line), run_mode=RunMode.RUN)
        with open_dict(composed):
            del composed["hydra"]
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        return _told(error)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items() if k != "resources"}  # those are the launcher's to read


def _point(line: tuple[str, ...], values: dict[str, Any] | str, planned: Callable[[Mapping[str, Any]], P]) -> Point[P]:
    if isinstance(values, str):
        return Point(line, None, values)
    try:
        return Point(line, planned(values))
    except KeelBenchError as error:
        return Point(line, None, str(error))


def _told(error: Exception) -> str:
    """Hydra's message on one line: its cause included, the key in full."""
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, MissingMandatoryValue):
        return no_value(error.full_key)
    parts = [str(error)] + ([str(error.__cause__)] if error.__cause__ is not None else [])
    lines = [line.strip() for part in parts for line in part.splitlines()]
    lines = [line for line in dict.fromkeys(lines) if line and not line.startswith("object_type")]
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    text = " ".join(line for line in lines if not line.startswith("full_key"))
    return f"{keys[0]}: {text}" if keys and keys[0] not in text else text
