"""Stages: computed once, found again.

A stage's output is a directory ``<root>/<stage>/<key>/``; the key is the hash of the stage's version and of the
resolved inputs it consumes, never of a name somebody typed. It is written beside its place and renamed into it when it
is whole, its manifest (with every file's checksum) last. A second job that wants the same key waits for the first; the
lock is the operating system's, so a dead holder's lock is free. An entry that fails its checksums is computed again,
and says so.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from eval.flops import Work
from suite.machine import gpu_peak_memory_mb, peak_memory_mb, restart_peaks

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


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


def fingerprint(value: Any) -> str:
    """20 hex digits of the SHA-256 of ``value`` as canonical JSON.

    Raises:
        TypeError: something in ``value`` is not JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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
        """
        key = self.key(stage, version, inputs)
        home = self.root / stage
        home.mkdir(parents=True, exist_ok=True)
        path = home / key
        title = f"{stage}{' ' + label if label else ''} [{key[:8]}]"
        found = self._found(stage, key, path)
        if found is None:
            lock = FileLock(home / f".{key}.lock")
            if not _try(lock):
                log.info("%s: waiting for another job that computes it", title)
                lock.acquire()
            try:
                found = self._found(stage, key, path)
                if found is None:
                    log.info("%s: computing", title)
                    entry = self._compute(stage, key, version, inputs, path, compute)
                    log.info("%s: done in %.1f s", title, entry.cost.seconds)
                    return entry
            finally:
                lock.release()
        log.info("%s: from the cache", title)
        return found

    @staticmethod
    def key(stage: str, version: str, inputs: Mapping[str, Any]) -> str:
        """Under which a stage's entry lies."""
        return fingerprint({"stage": stage, "version": version, "inputs": dict(inputs)})

    def find(self, stage: str, key: str) -> Entry | None:
        """A finished entry by its key; None where there is none, or a damaged one."""
        return self._found(stage, key, self.root / stage / key)

    def _compute(
        self,
        stage: str,
        key: str,
        version: str,
        inputs: Mapping[str, Any],
        path: Path,
        compute: Callable[[Path], int | Work],
    ) -> Entry:
        work = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=path.parent))
        try:
            restart_peaks()
            start = time.perf_counter()
            done = compute(work)
            done = done if isinstance(done, Work) else Work(done)
            seconds = time.perf_counter() - start
            cost = Cost(seconds, done.tokens, peak_memory_mb(), done.flops, done.gpus, gpu_peak_memory_mb())
            manifest = {
                "stage": stage,
                "version": version,
                "inputs": dict(inputs),
                "cost": vars(cost),
                "files": {
                    str(f.relative_to(work)): {"bytes": f.stat().st_size, "sha256": file_sha256(f)}
                    for f in sorted(work.rglob("*"))
                    if f.is_file()
                },
            }
            _write_durably(work / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
            work.chmod(0o755)
            os.rename(work, path)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        return Entry(stage, key, path, cost)

    def _found(self, stage: str, key: str, path: Path) -> Entry | None:
        if not path.is_dir():
            return None
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            cost = Cost.read(manifest["cost"])
            problem = next((p for n, f in manifest["files"].items() if (p := _defect(path / n, f))), None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"unreadable manifest ({error})"
        if problem is None:
            return Entry(stage, key, path, cost, cached=True)
        log.warning("%s [%s]: the cache entry is damaged (%s); computing it again", stage, key[:8], problem)
        doomed = Path(tempfile.mkdtemp(prefix=f".{key}-damaged-", dir=path.parent))
        with contextlib.suppress(FileNotFoundError):  # another job moved it
            os.rename(path, doomed / key)  # moved away first: a half-deleted entry never stands under its name
        shutil.rmtree(doomed, ignore_errors=True)
        return None


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
    return True


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
