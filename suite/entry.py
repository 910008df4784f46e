"""What every Hydra entry point does before its jobs run and after they have."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

# Before torch is imported: OpenMP threads that spin at barriers are ten times slower on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars fill a log with carriage returns

from eval.errors import KeelBenchError
from suite.experiments import check_asked
from suite.overrides import check_names
from suite.paths import conf_dir
from suite.sweep import SweepFolder


def enter(
    application: Callable[[], None],
    finish: Callable[[Path], bool],
    translate: Callable[[Sequence[str]], list[str]] = list,
) -> int:
    """Check the command line, run the Hydra ``application``, and let ``finish`` sum up the sweep's folder.

    Args:
        finish: told the folder; says whether everything went well.
        translate: the user's arguments to Hydra's.

    Returns:
        Exit status: 0, or 1 where any run failed, or 2 where the command line was wrong.
    """
    # A matter between peft and transformers, said again for every model.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
    try:
        arguments = translate(sys.argv[1:])
        check_names(arguments, Path(conf_dir()))
        check_asked(arguments)
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.argv[1:] = arguments
    application()
    if SweepFolder.path is None:  # --help, --cfg and their like ran no job
        return 0
    return 0 if finish(SweepFolder.path) else 1
