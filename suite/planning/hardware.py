"""Machines: what they can do at most, and what share of it each kind of work reached where that was measured."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from statistics import median
from typing import Any

import yaml

from suite.planning.shapes import SHAPES

# Kinds of work: forward passes; gradients of single samples; SEAL's bilevel steps; fine-tuning; and generation, whose
# share is of the memory's bandwidth, since every new token reads all weights.
KINDS = ("forward", "gradients", "bilevel", "training", "generation")


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind."""

    name: str
    peak: float  # operations a second of one device in bfloat16, dense
    bandwidth: float  # bytes a second of one device's memory
    memory: float  # bytes of one device
    efficiency: Mapping[str, float]  # by kind of work, of the peak; "generation": of the bandwidth
    measured: bool  # whether the efficiencies were; else they are assumptions
    startup: float = 30.0  # seconds until a process reads weights
    read: float = 1e9  # bytes a second of weights that are read
    spread: tuple[float, float] = (0.7, 3.3)  # what a time may be, as multiples of its estimate
    devices: int = 1
    dollars_per_hour: float | None = None  # of one device; None = no price is known here
    answers_at_once: int = 128  # sequences generated together, at most

    def of(self, devices: int, dollars_per_hour: float | None = None) -> "Hardware":
        """So many of them, at a price."""
        return replace(self, devices=devices, dollars_per_hour=dollars_per_hour)


@functools.cache
def points() -> dict[str, Any]:
    """``data/measured.yaml``: the points that efficiencies are fitted to, and those that estimates are checked with."""
    found: dict[str, Any] = yaml.safe_load((files("suite.planning") / "data" / "measured.yaml").read_text())
    return found


@functools.cache
def _fitted() -> dict[str, float]:
    """Each kind's share of what the measured machine can do at most: the median over its points."""
    shares: dict[str, list[float]] = {}
    for point in points()["fit"]:
        shape = SHAPES[point["model"]]
        if point["kind"] == "generation":
            asked = point["prompts"], point["prompt_tokens"], point["new_tokens"]
            least = shape.decoding_seconds(*asked, CPU_AT_ONCE, peak=CPU_PEAK, bandwidth=CPU_BANDWIDTH)
        else:
            least = point["passes"] * shape.forward(point["tokens"], point["length"]) / CPU_PEAK
        shares.setdefault(point["kind"], []).append(least / point["seconds"])
    return {kind: median(found) for kind, found in shares.items()}


# Measured on the build machine (2 cores of an AMD EPYC with AVX512-BF16; docs/benchmarks): a bfloat16 matrix product of
# 2048 cubed; and a copy of 1 GiB, beside other work.
CPU_PEAK = 8.7e11
CPU_BANDWIDTH = 6.7e9
CPU_AT_ONCE = 80  # sequences of a batch of backend=hf, at its default token budget

CPU_SPREAD = (0.6, 2.4)  # of the points in data/measured.yaml that nothing was fitted to

# No GPU was to be had: startup and reading are guesses; the efficiencies are what well-run jobs reach by common report
# (Chowdhery et al. 2022, table 3: 46 % for PaLM; small-batch LoRA and generation less), not measurements of this
# project. The spread reaches from a device at 57 % of its peak to LARF's published time (docs/scaling.md).
_ASSUMED = {"forward": 0.40, "gradients": 0.25, "bilevel": 0.25, "training": 0.35, "generation": 0.50}


class _Machines(dict[str, Hardware]):
    """By name; the CPU's efficiencies are fitted when it is first asked for."""

    def __missing__(self, name: str) -> Hardware:
        if name != "cpu2":
            raise KeyError(name)
        self[name] = Hardware(
            "cpu2", CPU_PEAK, CPU_BANDWIDTH, 24e9, _fitted(), measured=True, answers_at_once=CPU_AT_ONCE,
            startup=points()["loading"]["startup"], read=points()["loading"]["read"], spread=CPU_SPREAD,
        )  # fmt: skip
        return self[name]


# Peaks, bandwidths and memory from the makers' data sheets.
HARDWARE: dict[str, Hardware] = _Machines(
    {
        gpu.name: gpu
        for gpu in (
            Hardware("a100", 312e12, 2.0e12, 80e9, _ASSUMED, measured=False),
            Hardware("h100", 989e12, 3.35e12, 80e9, _ASSUMED, measured=False),
            Hardware("h200", 989e12, 4.8e12, 141e9, _ASSUMED, measured=False),
            Hardware("b200", 2250e12, 8.0e12, 180e9, _ASSUMED, measured=False),
            Hardware("l40", 181e12, 0.86e12, 48e9, _ASSUMED, measured=False),
            Hardware("a10", 125e12, 0.6e12, 24e9, _ASSUMED, measured=False),
            Hardware("v100", 125e12, 0.9e12, 32e9, _ASSUMED, measured=False),
            Hardware("t4", 65e12, 0.3e12, 16e9, _ASSUMED, measured=False),
            Hardware("l4", 121e12, 0.3e12, 24e9, _ASSUMED, measured=False),
            Hardware("rtx4090", 165e12, 1.0e12, 24e9, _ASSUMED, measured=False),
        )
    }
)
