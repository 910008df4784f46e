"""Names that come from configurations: they go into tables, W&B and file names, so they must not lead anywhere."""

import re
from pathlib import Path

from eval.errors import KeelBenchError

_PLAIN = re.compile(r"[\w][\w .+=@,()-]*(/[\w][\w .+=@,()-]*)?", re.ASCII)
_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
LONGEST = 120


def check_name(name: str, where: str) -> None:
    """Letters, digits, and `` .+=@,()-_`` within; one slash, as hub repositories have, but no way up.

    Raises:
        KeelBenchError: another character, ``..``, or more than 120 characters.
    """
    if len(name) > LONGEST or ".." in name or not _PLAIN.fullmatch(name):
        raise KeelBenchError(f"{where}={name[:LONGEST]!r}: a name of letters, digits and . _ - + = @ , ( ), no path")


def check_repo(repo: str, where: str) -> None:
    """``owner/name``, or a folder on this machine by its whole path, which ``datasets`` reads as it would a repository.

    Raises:
        KeelBenchError: neither (another path, or the name of one of the file readers of ``datasets``).
    """
    if ".." not in repo and Path(repo).is_absolute() and Path(repo).is_dir():
        return
    if ".." in repo or not _REPO.fullmatch(repo):
        raise KeelBenchError(f"{where}={repo[:LONGEST]!r}: a hub data set is named owner/name; a file goes by path=")


def check_below(path: str, where: str) -> None:
    """
    Raises:
        KeelBenchError: not a relative path that stays below its root.
    """
    if path.startswith(("/", "~")) or "\\" in path or ".." in path.split("/") or "\0" in path:
        raise KeelBenchError(f"{where}={path!r}: a path below the data root (paths.data); another place goes by path=")
