"""Hydra's own reading of the command line, before anything heavy is imported."""

from collections.abc import Sequence
from typing import Any


def parsed(arguments: Sequence[str]) -> Any | None:
    """The command line's parts; None where it starts no run (``--help``, ``--cfg`` …) or one of another configuration
    (``--config-path``, ``--experimental-rerun``), which is left to Hydra. Arguments that Hydra does not know end the
    program as they do there."""
    from hydra._internal.utils import get_args_parser

    asked = get_args_parser().parse_args(list(arguments))
    told = (asked.help, asked.hydra_help, asked.cfg, asked.info, asked.shell_completion)
    return None if any(told) or asked.config_path or asked.experimental_rerun else asked
