"""``python -m suite.sync [FOLDER]``: send to W&B what was kept offline, or what a failing server did not get.

python -m suite.sync                 # every run under runs/
python -m suite.sync runs/2025-01-31_12-00-00 --dry-run
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from eval.errors import KeelBenchError
from suite.command_line import one_line_errors, parser_of, runs_folder
from suite.tracking.run import SYNCED

_AT_ONCE = 20  # runs a call of the client


def unsent(folder: Path) -> list[Path]:
    """W&B run folders at or below ``folder`` that are not marked as sent, oldest first."""
    files = folder.rglob("wandb/*run-*/run-*.wandb")
    return sorted(
        (f.parent for f in files if not f.with_suffix(SYNCED).exists()), key=lambda f: f.name.split("run-")[1]
    )


def send(runs: list[Path], *, timeout: float = 3600) -> list[Path]:
    """Send run folders by ``wandb sync``, which marks what arrived.

    Returns:
        Those that are not marked as sent afterwards.
    """
    # Online runs too: what a killed process or a failing server left. A run that is still going on is marked sent at
    # its end, so whoever syncs early sends some of it twice, which the server folds by the run's id.
    for start in range(0, len(runs), _AT_ONCE):
        some = runs[start : start + _AT_ONCE]
        places = [str(folder.resolve()) for folder in some]
        command = [sys.executable, "-m", "wandb", "sync", "--yes", "--no-skip-online", *places]
        with tempfile.TemporaryDirectory() as logs:  # the client's own, which it would leave in the current folder
            try:
                environment = {**os.environ, "WANDB_DIR": logs}
                subprocess.run(command, check=False, timeout=timeout, stdin=subprocess.DEVNULL, env=environment)
            except subprocess.TimeoutExpired:
                print(f"no end after {timeout:.0f} s; going on", file=sys.stderr)
    return [run for run in runs if not any(run.glob(f"*{SYNCED}"))]


@one_line_errors
def main() -> int:
    parser = parser_of("suite.sync", __doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=runs_folder())
    parser.add_argument("--dry-run", action="store_true", help="only list what would be sent")
    parser.add_argument(
        "--timeout", type=float, default=3600, help="seconds for each batch of runs; default %(default)s"
    )
    options = parser.parse_args()
    if not options.folder.is_dir():
        raise KeelBenchError(f"{options.folder}: no such folder")
    runs = unsent(options.folder)
    print(f"{len(runs)} run{'s' if len(runs) != 1 else ''} to send")
    if options.dry_run:
        print(*runs, sep="\n")
        return 0
    failed = send(runs, timeout=options.timeout)
    if failed:
        listed = "\n".join(map(str, failed))
        raise KeelBenchError(f"{len(failed)} of {len(runs)} did not arrive (`wandb login` done? server up?):\n{listed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
