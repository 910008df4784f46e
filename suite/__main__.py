"""``python -m suite``: one run, or with ``-m`` one run for every point of a grid.

python -m suite                                        # the embedded model, data and benchmarks
python -m suite -m method=random,larf seed=42,100
python -m suite -m method=larf,seal model=llama3
"""

import os
import sys
import warnings
from pathlib import Path

# Before torch is imported: OpenMP threads that spin at barriers are ten times slower on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hydra
from omegaconf import DictConfig

from eval.errors import KeelBenchError
from suite.overrides import check_names
from suite.paths import conf_dir
from suite.sweep import SweepFolder, job, summarise


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def _hydra(config: DictConfig) -> None:
    job(config)


def main() -> int:
    """Exit status: 0, or 1 where any run failed, or 2 where the command line was wrong."""
    # A matter between peft and transformers, said again for every model.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
    try:
        check_names(sys.argv[1:], Path(conf_dir()))
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _hydra()
    if SweepFolder.path is None:  # --help, --cfg and their like ran no job
        return 0
    return 0 if summarise(SweepFolder.path) else 1


if __name__ == "__main__":
    sys.exit(main())
