"""``python -m suite``: one run, or with ``-m`` one run for every point of a grid.

python -m suite                                        # the embedded model, data and benchmarks
python -m suite -m method=random,larf seed=42,100
python -m suite -m method=larf,seal model=llama3
"""

import importlib
import sys

import hydra
from omegaconf import DictConfig

from suite.configuration.experiments import entry_point, named, names
from suite.entry import enter
from suite.paths import conf_dir
from suite.preflight.start import before_run
from suite.sweep import job, summarise


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def _hydra(config: DictConfig) -> None:
    job(config)


def main() -> int:
    """Exit status: 0, 1 where a run failed or a check before the first did, 2 where the command line was wrong. An
    experiment of another entry point (FlowLens's, say) is handed to it."""
    name = named(sys.argv[1:])
    if name in names() and (other := entry_point(name)) != "suite":
        found = importlib.import_module(other)
        module = importlib.import_module(f"{other}.__main__") if hasattr(found, "__path__") else found
        status: int = module.main()
        return status
    return enter(_hydra, summarise, preflight=before_run)


if __name__ == "__main__":
    sys.exit(main())
