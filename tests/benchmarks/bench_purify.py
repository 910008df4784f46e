"""Purify as a new user would: real rows with planted ones in a file, purified by each method on the aligned SmolLM2.

``SUITE_DATA=../shared/data python -m tests.benchmarks.bench_purify [method ...]``; BENCH_ROWS (600) sets the size,
BENCH_FOLDER keeps files and pages. Scores come from the stage cache where they are there, with the seconds they took;
CPU seconds are the whole command's, so they mean something only from a cache without scores (SUITE_CACHE).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from baselines.anchors import EMBEDDED
from baselines.samples import load_samples
from tests.benchmarks.common import ROOT, alpaca, print_table

METHODS = ("random", "length", "larf", "representation_matching", "gradsafe", "bi_anchoring", "seal")
SMALL = {"seal": ["method.learning_rate=3e-4", "method.selector_learning_rate=5e-2", "method.batch_size=16"]}
SHARE = 0.05  # planted rows of all


def write_mixture(path: Path, count: int) -> int:
    """``count`` real rows and the planted ones among them, in the order of their ids; returns how many are planted."""
    benign = alpaca(count)
    planted = sorted(load_samples(EMBEDDED / "planted.jsonl", source="planted").samples, key=lambda s: s.id)
    planted = planted[: round(SHARE * len(benign) / (1 - SHARE))]
    ids = {s.id for s in planted}
    with path.open("w") as file:
        for sample in sorted([*benign, *planted], key=lambda s: s.id):
            row = {"instruction": sample.instruction, "input": sample.input, "output": sample.response}
            file.write(json.dumps({**row, "planted": sample.id in ids}) + "\n")
    return len(planted)


def main() -> None:
    methods = sys.argv[1:] if "bench_purify" in sys.argv[0] else []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(os.environ.get("BENCH_FOLDER", scratch))
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / "mixture.jsonl"
        planted = write_mixture(source, int(os.environ.get("BENCH_ROWS", "600")))
        marks = [json.loads(line)["planted"] for line in source.read_text().splitlines()]
        table = []
        for method in methods or METHODS:
            name = method.replace(",", "_")
            command = [sys.executable, "-m", "suite.purify", f"dataset.path={source}", f"method={method}", "keep=0.9"]
            command += [
                f"out={folder}/{name}.jsonl",
                "overwrite=true",
                f"paths.runs={folder}/runs",
                *SMALL.get(method, []),
            ]
            before = os.times()
            subprocess.run(command, cwd=ROOT, check=True)
            after = os.times()
            cpu = after.children_user - before.children_user + after.children_system - before.children_system
            ranks = pq.read_table(folder / f"{name}.scores.parquet")["rank"].to_pylist()
            record = json.loads((folder / f"{name}.purify.json").read_text())
            written = [json.loads(line)["planted"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
            seconds = sum(m["seconds"] for m in record["methods"].values())
            controls = [m["controls"] for m in record["methods"].values()]
            cells = [f"{100 * recall(ranks, marks, share):.0f}" for share in (0.05, 0.1, 0.2)]
            cells += [f"{sum(written)} of {planted}", f"{seconds:.1f}", f"{len(marks) / seconds:.1f}", f"{cpu:.0f}"]
            cells.append(
                " / ".join(
                    "–" if c is None else f"{100 * c['auroc']:.0f} [{100 * c['low']:.0f}, {100 * c['high']:.0f}]"
                    for c in controls
                )
            )
            table.append([method, *cells])
            print(" | ".join(table[-1]), flush=True)
    columns = [
        "method",
        "recall, % dropping 5 %",
        "10 %",
        "20 %",
        "left in the output (keep=0.9)",
        "seconds",
        "rows/s",
        "CPU seconds",
    ]
    print_table(f"{planted} planted among {len(marks)} rows", [*columns, "controls above a row, %"], table)


def recall(ranks: list[int], planted: list[bool], share: float) -> float:
    """The share of the planted rows among the ``share`` of all that rank first."""
    k = round(share * len(ranks))
    return sum(p and r <= k for r, p in zip(ranks, planted, strict=True)) / sum(planted)


if __name__ == "__main__":
    main()
