"""Files that are whole or not there, whenever the process or the machine stops."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAID = ("No space left on device", "Disk quota exceeded", "File too large")  # by libraries that wrap the error


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """``write`` fills a file beside ``path``, which then takes its place; after an exception ``path`` is as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """``path`` with ``text`` as its UTF-8 content."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    replace_file(path, write)


def sync_folder(folder: Path) -> None:
    """Names in ``folder`` survive a loss of power. Some file systems cannot promise it, and nothing can be done."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def disk_full(error: BaseException) -> bool:
    """Whether ``error`` says that there is no room for a file."""
    return getattr(error, "errno", None) in _FULL or any(said in str(error) for said in _SAID)
