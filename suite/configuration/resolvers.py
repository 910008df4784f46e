"""Interpolations of our own in ``conf``: a choice that depends on what is on this machine.

``${local:root,file,there,else}``: ``there`` where ``root/file`` exists (``root``: ``${paths.data}``), else ``else``.
``${adapters:experiment,runs,cache}``: the adapters of the experiment's latest sweep, as values of a sweep.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf


def local(root: str | None, file: str, there: str, otherwise: str) -> str:
    """``there`` where the file or folder lies under ``root``."""
    return there if root and (Path(root).expanduser() / file).exists() else otherwise


def adapters(experiment: str, runs: str, cache: str) -> str:
    """Folders of all distinct adapters of the latest sweep of ``experiment``, in run order, quoted for Hydra's grammar.

    Raises:
        KeelBenchError: no such sweep, or none of its runs has an adapter in this cache.
    """
    from eval.errors import KeelBenchError
    from suite.records import adapter_key
    from suite.report.find import find_sweep
    from suite.results import collect

    try:
        sweep = find_sweep(experiment, Path(runs))
    except KeelBenchError as error:
        raise KeelBenchError(
            f"{experiment} has to be run first: python -m suite -m +experiment={experiment}"
        ) from error
    keys = dict.fromkeys(key for row in collect(sweep) if (key := adapter_key(row)) is not None)
    folders = [folder for key in keys if (folder := Path(cache).expanduser() / "adapter" / key).is_dir()]
    if not folders:
        raise KeelBenchError(f"no run of {sweep} has an adapter in {cache}")
    return ",".join(f"'{folder}'" for folder in folders)


@contextmanager
def without_environment() -> Iterator[None]:
    """Within it a configuration that is resolved reads no environment variable: that of a stranger's run could name one
    with a key, which would then be shown.

    Raises:
        OmegaConfBaseException: where one is asked for.
    """
    from omegaconf.resolvers import oc

    def refused(name: str, *default: object) -> None:
        raise ValueError(f"a stored configuration must not read the environment ({name})")

    OmegaConf.register_new_resolver("oc.env", refused, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def register() -> None:
    """Make them known to OmegaConf; done by ``suite.paths.conf_dir``, without which nothing composes."""
    OmegaConf.register_new_resolver("local", local, replace=True)
    OmegaConf.register_new_resolver("adapters", adapters, replace=True)
