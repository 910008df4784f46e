"""What the benchmarks share: real rows, the machine's matrix-multiply peak, and a table."""

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parents[2]


def smollm2_folder() -> Path:
    from suite.stages.models import prepare
    from suite.storage.cache import StageCache
    from tests.helpers import COMPUTE, SMOLLM2

    return prepare(SMOLLM2, COMPUTE, StageCache(Path(os.environ.get("SUITE_CACHE", ROOT / "cache")))).folder


def alpaca(count: int) -> list[Any]:
    """Real Alpaca rows out of SUITE_DATA, a fixed mixture of lengths; the embedded data where there are none."""
    from baselines.anchors import EMBEDDED
    from baselines.samples import load_samples

    root = os.environ.get("SUITE_DATA")
    path = Path(root) / "alpaca" / "train.jsonl" if root else EMBEDDED / "mini_benign.jsonl"
    print(f"data: {path.parent.name}/{path.name}, {count} rows")
    return sorted(load_samples(path, source="bench").samples, key=lambda s: s.id)[:count]


def matmul_peak(dtype: Any) -> float:
    """FLOP/s of a 2048-cubed matrix product, the best of ten."""
    import torch

    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def machine() -> str:
    import torch

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As Markdown, ready for docs/benchmarks."""
    print(f"\n{title} ({machine()})\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(row) + " |")
