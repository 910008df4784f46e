"""What stages computed, and how much of the machine's peak they reached (MFU).

The operations themselves are counted where they are done, by formula (``eval.flops``; a method's own in
``baselines.counting``), and stand with the stage's other costs.
"""

import time
from collections.abc import Sequence

from suite.storage.cache import Entry


def matmul_peak(device: str, dtype: str) -> float:
    """Operations a second of a square matrix product here and now, the best of six: the peak that MFU is a share of."""
    import torch

    size = 1024 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in "ab")
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def compute_costs(entries: Sequence[Entry], *, device: str, dtype: str) -> dict[str, float | None]:
    """``cost/<stage>/flops``, ``/gpus`` and ``/mfu`` of the stages whose operations were counted.

    A stage of several entries (one a benchmark) has a sum where all of them were counted; one that an older version
    computed was not. MFU (model FLOPs utilisation, Chowdhery et al. 2022) only where this process computed the stage:
    the machine that an entry in the cache was computed on is not known. Its seconds include loading what the stage
    loads, and its peak is that of as many GPUs as worked on it.
    """
    stages: dict[str, list[Entry]] = {}
    for entry in entries:
        stages.setdefault(entry.stage, []).append(entry)
    counted = {stage: mine for stage, mine in stages.items() if all(e.cost.flops is not None for e in mine)}
    peak: float | None = None
    costs: dict[str, float | None] = {}
    for stage, mine in counted.items():
        costs[f"cost/{stage}/flops"] = _flops(mine)
        costs[f"cost/{stage}/gpus"] = max(e.cost.gpus for e in mine)
        now = [e for e in mine if not e.cached and e.cost.seconds > 0]
        if now and peak is None:
            peak = matmul_peak(device, dtype)
        available = sum(e.cost.seconds * max(1, e.cost.gpus) for e in now)
        costs[f"cost/{stage}/mfu"] = _flops(now) / available / peak if now and peak else None
    return costs


def _flops(entries: Sequence[Entry]) -> float:
    return float(sum(e.cost.flops or 0.0 for e in entries))
