"""Another judge on finished runs as typed values, out of ``conf/rejudge.yaml``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError
from eval.judges import Judge
from suite.plan import PathsSpec, judge_of, paths_spec, refuse_unknown


@dataclass(frozen=True, kw_only=True)
class RejudgePlan:
    runs: tuple[Path, ...]  # their folders
    judge: Judge
    paths: PathsSpec


def rejudge_plan(folder: Path, config: Mapping[str, Any]) -> RejudgePlan:
    """The plan of a resolved configuration, for a run's folder or a sweep's.

    Raises:
        UnknownNameError: a key that nothing reads.
        KeelBenchError: no finished run, or a value of the wrong kind.
    """
    refuse_unknown(config, {"judge", "compute", "paths"}, "setting")
    runs = sorted(f.parent for f in folder.rglob("record.json"))
    if not runs:
        raise KeelBenchError(f"no finished run in {folder}")
    return RejudgePlan(runs=tuple(runs), judge=judge_of(config["judge"]), paths=paths_spec(config["paths"]))


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved values of ``conf/rejudge.yaml`` under these overrides.

    Raises:
        KeelBenchError: names that are not there, or an override that Hydra does not take.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from suite.configuration.overrides import check_names
    from suite.paths import conf_dir

    check_names(overrides, Path(conf_dir()))
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            values = OmegaConf.to_container(compose("rejudge", overrides=list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise KeelBenchError(str(error)) from error
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}
