"""The experiments under ``conf/experiment``: which there are, whose entry point carries each out, and its points."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.errors import KeelBenchError, UnknownNameError
from suite.paths import conf_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig

_COMMAND = re.compile(r"python -m (suite[.\w]*) -m \+experiment=")
_NAMED = re.compile(r"\+experiment=(\w+)$")


def names() -> list[str]:
    """Every experiment."""
    return sorted(f.stem for f in (Path(conf_dir()) / "experiment").glob("*.yaml"))


def entry_point(name: str) -> str:
    """The module that carries the experiment out, as the command in its file says: ``suite``, ``suite.flowlens``, ...

    Raises:
        UnknownNameError: no such experiment.
    """
    file = Path(conf_dir()) / "experiment" / f"{name}.yaml"
    if not file.is_file():
        raise UnknownNameError("experiment", name, names())
    found = _COMMAND.search(file.read_text())
    if found is None:
        raise KeelBenchError(f"{file} does not say by which command it is run")
    return found.group(1)


def named(arguments: Sequence[str]) -> str | None:
    """The experiment that a command line names."""
    return next((found.group(1) for a in arguments if (found := _NAMED.match(a))), None)


def check_asked(arguments: Sequence[str]) -> None:
    """An experiment is a sweep, and a scale is an experiment's.

    Raises:
        KeelBenchError: an experiment without ``-m``, which would run one point of the default configuration, or a scale
            without an experiment, which would change nothing.
    """
    name = named(arguments)
    if name is None and any(a.startswith("scale=") for a in arguments):
        raise KeelBenchError("scale= sizes a paper's experiment: name one, +experiment=..., with -m")
    if name is not None and not any(a.startswith("-") for a in arguments):  # -m; or --help, --cfg and their like
        raise KeelBenchError(f"an experiment is a sweep: python -m {entry_point(name)} -m +experiment={name}")


def points(name: str, *arguments: str) -> list[list[str]]:
    """The overrides of every point of an experiment, as Hydra's sweeper makes them.

    Args:
        arguments: more of the command line, such as ``scale=laptop`` or ``paths.data=/data``.

    Each composes, with ``+experiment=<name>``, to the configuration of one job.

    Raises:
        UnknownNameError: no such experiment.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    config = sweep_config(name, *arguments)
    params = config.hydra.sweeper.params or {}
    overrides = [f"{key}={value}" for key, value in params.items()]
    parsed = OverridesParser.create().parse_overrides([*overrides, *arguments])
    return [point for batch in BasicSweeper.split_arguments(parsed, None) for point in batch]


def sweep_config(name: str, *arguments: str) -> "DictConfig":
    """The experiment's configuration before it is split into points, Hydra's own part included."""
    from hydra import compose, initialize_config_dir

    config_name = {"suite": "config"}.get(entry := entry_point(name), entry.removeprefix("suite."))
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        found: Any = compose(config_name, overrides=[f"+experiment={name}", *arguments], return_hydra_config=True)
    return found
