"""What a stage has done before it is finished, so that a killed one goes on from there.

A folder under the cache, one for a stage's key, used under the key's lock and removed when the stage is finished. Every
file in it has a part of its own SHA-256 in its name: one that is damaged, or of which a crash left a part only, is told
from a sound one, passed over and removed.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from suite.storage.durable import disk_full, file_sha256, replace_file, replace_text

log = logging.getLogger(__name__)

_SPENT = "spent.json"


class Unfinished:
    """The folder of one stage that is being computed. It is made when something is kept."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds_before = self._spent()  # by the processes that did not finish it, up to what they kept last
        self._start = time.perf_counter()

    def keep(self, name: str, write: Callable[[Path], None]) -> Path | None:
        """Keep the file that ``write`` fills, as ``name`` (with an ending such as ``.safetensors``).

        Returns:
            Its path; None where the disk has no room for it, which the stage survives.
        """
        stem, dot, ending = name.rpartition(".")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = self.folder / f"fresh.{ending}"
            replace_file(fresh, write)
            path = self.folder / f"{stem}.{file_sha256(fresh)[:16]}{dot}{ending}"
            fresh.replace(path)
            replace_text(self.folder / _SPENT, json.dumps({"seconds": self.seconds()}))
        except Exception as error:
            if not disk_full(error):
                raise
            log.warning("no room to keep %s; the stage goes on without (%s)", name, error)
            return None
        return path

    def sound(self, stem: str) -> list[Path]:
        """What was kept under names that begin with ``stem``, in the order of the names; damaged files are removed."""
        found = []
        for path in sorted(self.folder.glob(f"{stem}*")):
            if path.name.startswith(("fresh.", ".")) or not path.is_file():
                continue
            if path.suffixes[-2:-1] == [f".{file_sha256(path)[:16]}"]:
                found.append(path)
            else:
                log.warning("%s is damaged; what it held is done again", path)
                path.unlink()
        return found

    def drop(self, paths: Iterable[Path]) -> None:
        """Remove what is no longer needed."""
        for path in paths:
            path.unlink(missing_ok=True)

    def seconds(self) -> float:
        """The time the stage has taken so far, in this process and in those before."""
        return self.seconds_before + time.perf_counter() - self._start

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spent(self) -> float:
        try:
            return float(json.loads((self.folder / _SPENT).read_text())["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0


def without_checksum(path: Path) -> str:
    """The name under which a file was kept."""
    stem, _, _ = path.stem.rpartition(".")
    return stem + path.suffix
