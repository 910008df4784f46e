"""Where the configuration lies: beside the packages in a checkout, inside ``suite`` once installed."""

from pathlib import Path

from suite.configuration.resolvers import register

_HERE = Path(__file__).resolve().parent


def conf_dir() -> str:
    """The absolute path of ``conf``; what its interpolations need is known from then on.

    Raises:
        FileNotFoundError: neither place has a ``config.yaml``.
    """
    register()
    for candidate in (_HERE / "conf", _HERE.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return str(candidate)
    raise FileNotFoundError(f"no conf/config.yaml in {_HERE} or beside it")
