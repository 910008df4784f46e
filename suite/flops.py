"""Floating-point operations of stages, by formula, and how much of the machine's peak they reached (MFU).

Counted are the matrix products of the transformer blocks (Kaplan et al. 2020, section 2.1: two operations a parameter
and token forward); embeddings, the head, and attention's own products, small at these lengths, are not.
"""

import json
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from suite.cache import Entry

# Operations a block parameter and token. Training with LoRA: forward 2, and backward 2 for the activations' gradients;
# the frozen weights get none, and the adapters' own are a hundredth of it. Of completions the generated tokens are
# counted. Scoring has none: what a method computes a token is its own matter (some stop half-way through the model).
_PER_TOKEN = {"adapter": 4, "aligned_model": 4, "completions": 2}


def block_parameters(folder: Path) -> int:
    """Parameters of the weight matrices in the blocks of a model folder, read off the safetensors' headers."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(size))
        for name, tensor in header.items():
            if ".layers." in name and len(tensor.get("shape", ())) == 2:
                count += tensor["shape"][0] * tensor["shape"][1]
    return count


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


def compute_costs(entries: Sequence[Entry], weights: Path, *, device: str, dtype: str) -> dict[str, float | None]:
    """``cost/<stage>/flops`` and ``cost/<stage>/mfu`` of the stages that a formula is known for.

    MFU (model FLOPs utilisation, Chowdhery et al. 2022) only where this process computed the stage: the machine that an
    entry in the cache was computed on is not known. Its seconds include loading what the stage loads.
    """
    counted = {stage: [e for e in entries if e.stage == stage] for stage in _PER_TOKEN}
    counted = {stage: mine for stage, mine in counted.items() if mine}
    parameters = block_parameters(weights) if counted else 0
    if not parameters:  # a folder without safetensors, or with names that this does not know
        return {}
    fresh = [e for mine in counted.values() for e in mine if not e.cached]
    peak = matmul_peak(device, dtype) if fresh else None
    costs: dict[str, float | None] = {}
    for stage, mine in counted.items():
        each = _PER_TOKEN[stage] * parameters
        costs[f"cost/{stage}/flops"] = float(each * sum(e.cost.tokens for e in mine))
        now = [e for e in mine if not e.cached and e.cost.seconds > 0]
        costs[f"cost/{stage}/mfu"] = (
            each * sum(e.cost.tokens for e in now) / sum(e.cost.seconds for e in now) / peak if now and peak else None
        )
    return costs
