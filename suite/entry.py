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
from suite.configuration.experiments import check_asked
from suite.configuration.overrides import check_names
from suite.paths import conf_dir
from suite.storage.durable import disk_full
from suite.sweep import SweepFolder, killed_points


def enter(
    application: Callable[[], None],
    finish: Callable[[Path], bool],
    translate: Callable[[Sequence[str]], list[str]] = list,
    preflight: Callable[[Sequence[str]], None] = lambda arguments: None,
) -> int:
    """Check the command line, run the Hydra ``application``, and let ``finish`` sum up the sweep's folder.

    Args:
        finish: told the folder; says whether everything went well.
        translate: the user's arguments to Hydra's.
        preflight: told Hydra's arguments; raises ``KeelBenchError`` where no job should start.

    Returns:
        Exit status: 0, or 1 where any run failed or none was started, or 2 where the command line was wrong.
    """
    # A matter between peft and transformers, said again for every model.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
    try:
        arguments = translate(sys.argv[1:])
        check_names(arguments, Path(conf_dir()))
        check_asked(arguments)
        _check_launcher(arguments)
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if any(argument.startswith("hydra/launcher=") for argument in arguments):
        from suite.launchers.plugin import register

        register()
    try:
        preflight(arguments)
    except KeelBenchError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    sys.argv[1:] = arguments
    SweepFolder.ending = f"{_module(finish)}:{finish.__qualname__}"
    _carried_out(application)
    if SweepFolder.path is None or SweepFolder.detached:  # --help, --cfg and their like ran no job
        return 0
    try:
        return 0 if finish(SweepFolder.path) else 1
    except Exception as error:
        if not disk_full(error):
            raise
        print(f"error: no room on the disk of {SweepFolder.path} ({error}); make some, and the same command goes on",
              file=sys.stderr)  # fmt: skip
        return 1


def _carried_out(application: Callable[[], None]) -> None:
    """Run the Hydra ``application``. When a launcher gives up because one of its worker processes was killed (joblib
    stops all others then), it is started again on the same folder, for the points that are not finished; a point whose
    process is killed again and again is given up (``suite.sweep.DEATHS``)."""
    while True:
        try:
            application()
        except SystemExit as ended:
            sweep = SweepFolder.path
            killed = killed_points(sweep) if sweep is not None and ended.code else []
            if not killed:
                raise
            print(
                f"the processes of {len(killed)} points were killed; going on with what is not finished in {sweep}",
                file=sys.stderr,
            )
            folder = f"hydra.sweep.dir={sweep}"
            if folder not in sys.argv:
                sys.argv.append(folder)
        else:
            return


def _check_launcher(arguments: Sequence[str]) -> None:
    """
    Raises:
        KeelBenchError: a launcher for one run, which Hydra would carry out here in silence.
    """
    sweeps = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
    shows = {"--help", "-h", "--cfg", "-c", "--info", "-i", "--hydra-help"}
    if any(a.startswith("hydra/launcher=") for a in arguments) and not {*sweeps, *shows} & set(arguments):
        raise KeelBenchError("hydra/launcher has no effect without -m: python -m suite -m hydra/launcher=…")


def _module(function: Callable[..., object]) -> str:
    """By which another process can import it, although this one runs it as ``__main__``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if function.__module__ == "__main__" and spec is not None else function.__module__
