"""Stages: computed once, found again.

A stage's output is a directory ``<root>/<stage>/<key>/``; the key is the hash of the stage's version and of the
resolved inputs it consumes, never of a name somebody typed. It is written beside its place and renamed into it when it
is whole, its manifest (with every file's checksum) last. A second job that wants the same key waits for the first; the
lock is the operating system's, so a dead holder's lock is free. An entry that fails its checksums is computed again,
and says so. A long stage keeps what it has done so far (``suite.storage.unfinished``) and goes on from there after a
kill.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from eval.errors import KeelBenchError
from eval.flops import Work
from eval.memory import Shrunk, recorded
from suite.machine import gpu_peak_memory_mb, peak_memory_mb, restart_peaks
from suite.storage.durable import disk_full, replace_text, sync_folder
from suite.storage.durable import file_sha256 as file_sha256
from suite.storage.unfinished import Unfinished

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
_NO_LOCKS = "locks do not work in this cache (docs/robustness.md, Several jobs on one cache)"


@dataclass(frozen=True)
class Cost:
    """What a stage took when it was computed."""

    seconds: float = 0.0
    tokens: int = 0
    peak_memory_mb: float = 0.0  # of the whole process, while the stage was computed
    flops: float | None = None  # by formula (eval.flops); None = not counted
    gpus: int = 0  # that worked on it
    gpu_peak_memory_mb: float | None = None  # of the fullest GPU, of this process alone; None = no GPU

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> "Cost":
        """Out of a manifest, perhaps of another version: what is unknown here is left out."""
        return cls(**{k: v for k, v in written.items() if k in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Entry:
    """A finished stage."""

    stage: str
    key: str
    path: Path
    cost: Cost = field(default_factory=Cost)
    cached: bool = False
    shrunk: tuple[Shrunk, ...] = ()  # batches that did not fit the memory when it was computed


def fingerprint(value: Any) -> str:
    """20 hex digits of the SHA-256 of ``value`` as canonical JSON.

    Raises:
        TypeError: something in ``value`` is not JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


_STAGE = re.compile(r"([a-z_]+)/([A-Za-z0-9_-]+)")


def stage_and_key(text: str) -> tuple[str, str]:
    """The two parts of a record's ``stage/key``, which becomes a path: records may come from strangers.

    Raises:
        KeelBenchError: it is none.
    """
    found = _STAGE.fullmatch(text)
    if found is None:
        raise KeelBenchError(f"{text[:80]!r} names no stage")
    return found.group(1), found.group(2)


class StageCache:
    """All stages under one root, which any number of jobs may share."""

    def __init__(self, root: Path):
        self.root = root

    def entry(
        self,
        stage: str,
        version: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path], int | Work],
        label: str = "",
    ) -> Entry:
        """The stage's finished entry; ``compute`` fills an empty directory and returns the tokens it processed, perhaps
        with the operations that took.

        Args:
            inputs: everything the output depends on, as JSON values; upstream stages by their key.
            label: what to call the stage's work in the log.

        An exception in ``compute`` leaves nothing behind.

        Raises:
            KeelBenchError: the disk is full.
        """
        return self.resumable_entry(stage, version, inputs, lambda out, unfinished: compute(out), label)

    def resumable_entry(
        self,
        stage: str,
        version: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path, Unfinished], int | Work],
        label: str = "",
    ) -> Entry:
        """As ``entry``; what ``compute`` keeps in its second argument is there again when it is called after a kill or
        an exception, and gone when the stage is finished."""
        key = self.key(stage, version, inputs)
        home = self.root / stage
        home.mkdir(parents=True, exist_ok=True)
        path = home / key
        title = f"{stage}{' ' + label if label else ''} [{key[:8]}]"
        found = self.find(stage, key)
        leftover = self.unfinished(stage, key)
        if found is None or leftover.exists():
            lock = FileLock(home / f".{key}.lock")
            if not _try(lock):
                log.info("%s: waiting for another job that computes it", title)
                lock.acquire()
            try:
                found = self._found(stage, key, path)
                if found is None:
                    _remove_leftovers(home, key)
                    goes_on = leftover.exists()
                    log.info("%s: computing%s", title, ", from where an earlier job was stopped" if goes_on else "")
                    entry = self._compute(stage, key, version, inputs, path, compute)
                    log.info("%s: done in %.1f s", title, entry.cost.seconds)
                    return entry
                shutil.rmtree(leftover, ignore_errors=True)  # of a job killed between its end and its tidying up
            finally:
                lock.release()
        log.info("%s: from the cache", title)
        return found

    def unfinished(self, stage: str, key: str) -> Path:
        """The folder of what a stage has done before it is finished."""
        return self.root / UNFINISHED / f"{stage}-{key}"

    @staticmethod
    def key(stage: str, version: str, inputs: Mapping[str, Any]) -> str:
        """Under which a stage's entry lies."""
        return fingerprint({"stage": stage, "version": version, "inputs": dict(inputs)})

    def find(self, stage: str, key: str) -> Entry | None:
        """A finished entry by its key; None where there is none, or a damaged one.

        Raises:
            KeelBenchError: names that could not be an entry's.
        """
        stage_and_key(f"{stage}/{key}")
        found, problem = self._read(stage, key, self.root / stage / key)
        if problem is not None:
            log.warning("%s [%s]: the cache entry is damaged (%s)", stage, key[:8], problem)
        return found

    def _compute(
        self,
        stage: str,
        key: str,
        version: str,
        inputs: Mapping[str, Any],
        path: Path,
        compute: Callable[[Path, Unfinished], int | Work],
    ) -> Entry:
        unfinished = Unfinished(self.unfinished(stage, key))
        work: Path | None = None
        try:
            work = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=path.parent))
            restart_peaks()
            with recorded() as shrunk:
                done = compute(work, unfinished)
            done = done if isinstance(done, Work) else Work(done)
            seconds = unfinished.seconds()
            cost = Cost(seconds, done.tokens, peak_memory_mb(), done.flops, done.gpus, gpu_peak_memory_mb())
            manifest = {
                "stage": stage,
                "version": version,
                "inputs": dict(inputs),
                "cost": vars(cost),
                "shrunk": [vars(event) for event in shrunk],
                "files": {
                    str(f.relative_to(work)): {"bytes": f.stat().st_size, "sha256": file_sha256(f)}
                    for f in sorted(work.rglob("*"))
                    if f.is_file()
                },
            }
            manifest["checksum"] = fingerprint(manifest)
            replace_text(work / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
            work.chmod(0o755)
            os.rename(work, path)
        except BaseException as error:
            if work is not None:
                shutil.rmtree(work, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                other = self.find(stage, key)
                if other is not None:  # equal: the key says so
                    log.warning("%s [%s]: another job has finished it meanwhile; %s", stage, key[:8], _NO_LOCKS)
                    return other
            if isinstance(error, Exception) and disk_full(error):
                raise KeelBenchError(
                    f"no room on the disk of {self.root} ({error}); make some, and the same command goes on"
                ) from error
            raise
        sync_folder(path.parent)
        unfinished.clear()
        return Entry(stage, key, path, cost, shrunk=tuple(shrunk))

    def _found(self, stage: str, key: str, path: Path) -> Entry | None:
        """A finished entry; a damaged one is removed. Only for the holder of the lock: another job could have put a
        sound one in its place meanwhile."""
        found, problem = self._read(stage, key, path)
        if problem is not None:
            log.warning("%s [%s]: the cache entry is damaged (%s); computing it again", stage, key[:8], problem)
            doomed = Path(tempfile.mkdtemp(prefix=f".{key}-damaged-", dir=path.parent))
            os.rename(path, doomed / key)  # moved away first: a half-deleted entry never stands under its name
            shutil.rmtree(doomed, ignore_errors=True)
        return found

    def _read(self, stage: str, key: str, path: Path) -> tuple[Entry | None, str | None]:
        """The entry, or what is wrong with it; neither where there is none."""
        if not path.is_dir():
            return None, None
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            stated = manifest.pop("checksum", None)  # older entries have none
            if stated is not None and fingerprint(manifest) != stated:
                return None, f"{MANIFEST} fails its checksum"
            cost = Cost.read(manifest["cost"])
            shrunk = tuple(Shrunk(**event) for event in manifest.get("shrunk", ()))
            problem = next((p for n, f in manifest["files"].items() if (p := _defect(path / n, f))), None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return None, f"unreadable manifest ({error})"
        return (None, problem) if problem else (Entry(stage, key, path, cost, cached=True, shrunk=shrunk), None)


def _remove_leftovers(home: Path, key: str) -> None:
    """Working folders of jobs that were killed: who holds the key's lock is the only one at work on it."""
    for folder in home.glob(f".{key}-*"):
        # Moved away first: where locks do not hold, a job that is at work in it fails, rather than to finish a part.
        doomed = Path(tempfile.mkdtemp(prefix=f".{key}-killed-", dir=home))
        with contextlib.suppress(OSError):
            os.rename(folder, doomed / "work")
        shutil.rmtree(doomed, ignore_errors=True)


def _defect(path: Path, expected: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != expected["bytes"]:
        return f"{path.name} has {path.stat().st_size} bytes, not {expected['bytes']}"
    if file_sha256(path) != expected["sha256"]:
        return f"{path.name} fails its checksum"
    return None


def _try(lock: FileLock) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
        raise KeelBenchError(f"no lock can be taken at {lock.lock_file} ({error}); {_NO_LOCKS}") from error
    return True
