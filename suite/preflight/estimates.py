"""Disk and time that a sweep will take. Rough: operations by formula over rates that were measured, or assumed."""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from suite.planning.hardware import HARDWARE, Hardware
from suite.preflight.findings import Finding
from suite.preflight.machine import Gpu
from suite.preflight.work import Stage
from suite.storage.cache import MANIFEST

STAGE_SECONDS = 5.0  # loading, saving
RUN_BYTES = 20_000_000  # a run's folder: tables, W&B's files
MARGIN = 1_000_000_000  # that should stay free
_KINDS = {"answering": "answering", "judging": "answering", "utility": "answering"}  # the others train or read
_STAGES = {"adapter": ("training", 4), "completions": ("answering", 2)}  # as suite.flops counts them


@dataclass
class Rates:
    """Operations a second by kind of work, ``source`` saying where they are from, and what a time may be as multiples
    of its estimate."""

    rates: Mapping[str, float]
    source: str
    spread: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of(cls, hardware: Hardware, source: str, share: float = 1.0) -> "Rates":
        """
        Args:
            share: of the device that is used.
        """
        # One answer reads all weights for each token, many at once share the reading.
        answering = min(hardware.peak, hardware.bandwidth * hardware.answers_at_once)
        rates = {
            "training": share * hardware.efficiency["training"] * hardware.peak,
            "answering": share * hardware.efficiency["generation"] * answering,
        }
        return cls(rates, source, hardware.spread)

    def about(self, stages: Collection[Stage]) -> str:
        """How long ``stages`` take, as a range where it is one."""
        low, high = (duration(share * self.seconds(stages)) for share in self.spread)
        return f"about {low}" if low == high else f"{low} to {high}"

    def seconds(self, stages: Iterable[Stage]) -> float:
        return sum(STAGE_SECONDS + s.flops / self.rates[_KINDS.get(s.name, "training")] for s in stages)

    def calibrate(self, cache: Path, block_parameters: int, newest: int = 20) -> None:
        """By what the cache says that stages of the models it holds took, whichever machine computed them.

        Every entry is taken to be of a model of this size: a cache of several models calibrates roughly.
        """
        for stage, (kind, per_token) in _STAGES.items():
            tokens, seconds = 0, 0.0
            for place in sorted((cache / stage).glob(f"*/{MANIFEST}"), key=lambda f: f.stat().st_mtime)[-newest:]:
                try:
                    cost = json.loads(place.read_text())["cost"]
                    tokens, seconds = tokens + int(cost["tokens"]), seconds + float(cost["seconds"])
                except (OSError, ValueError, KeyError, TypeError):
                    continue
            if tokens and seconds > 1:
                self.rates = {**self.rates, kind: per_token * block_parameters * tokens / seconds}
                self.source, self.spread = "as fast as earlier stages in this cache", (1.0, 1.0)


def rates(device: str, found: list[Gpu], threads: int | None) -> Rates:
    kind, _, number = device.partition(":")
    if kind != "cpu" and found:
        gpu = found[min(int(number or 0), len(found) - 1)]
        return gpu_rates(gpu.name)
    cores = threads or cores_here()
    return Rates.of(HARDWARE["cpu2"], f"{cores} CPU cores", cores / 2)


def cores_here() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_rates(name: str) -> Rates:
    """Of a GPU by its driver's name; of an A10 where it is not among those that ``suite.planning`` knows."""
    plain = name.lower().replace(" ", "")
    known = next((key for key in sorted(HARDWARE, key=len, reverse=True) if key in plain), None)
    return Rates.of(HARDWARE[known or "a10"], f"one {known.upper() if known else 'GPU'}, an assumption")


def check_disk(place: Path, what: str, needed: int) -> Finding:
    """Whether ``needed`` bytes fit on the file system of ``place``, which need not exist yet."""
    there = place.expanduser().absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    said = f"about {_size(needed)} needed (rough), {_size(free)} free"
    if not os.access(there, os.W_OK):
        return Finding(f"disk for {what}", "failed", f"{there} cannot be written to", "paths.cache=, paths.runs=")
    if free < needed:
        return Finding(f"disk for {what}", "failed", said, "free some, or another place: paths.cache=, paths.runs=")
    if free < needed + MARGIN:
        return Finding(f"disk for {what}", "warning", said, "free some")
    return Finding(f"disk for {what}", "ok", said)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds / 10)) * 10} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
