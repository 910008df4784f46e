"""Cost a sample and memory by the number of samples: ``python -m tests.benchmarks.bench_scale [1000 10000 100000 …]``.

A random Llama of 2 blocks scores synthetic rows with LARF, through the stages a run goes through: read, score, select,
write the run's tables, and the report's view of them. Lengths are log-normal (of words: median 40, a hundredth above
250), the same for every size. Each size has a process of its own, so that peak memory is its own. CPU seconds are the
process's, since other work may share the cores; the time that needs no samples (anchors, start) is measured with 64
samples and taken off. The model is so small that reading, tokenising and writing are most of the cost: what a larger
model adds is its own, constant a token.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from suite.machine import peak_memory_mb
from tests.benchmarks.common import ROOT, print_table, smollm2_folder

SIZES = (1_000, 10_000, 100_000)
FEW = 64
K = 1_000
WORDS = "the quick model answers a question about rivers and towns in plain words of one line each".split()  # noqa: SIM905


def write_rows(path: Path, count: int) -> None:
    dice = random.Random(0)
    with path.open("w") as out:
        for number in range(count):
            lengths = [1 + int(dice.lognormvariate(mean, 0.8)) for mean in (2.5, 3.4)]
            asked, answered = (" ".join(dice.choices(WORDS, k=min(n, 400))) for n in lengths)
            out.write(json.dumps({"instruction": f"{number}: {asked}", "output": answered}) + "\n")


def one(count: int, folder: Path) -> dict[str, Any]:
    """The phases' CPU seconds and the memory after each, of ``count`` rows."""
    from dataclasses import replace

    from baselines import get_method
    from suite.plan import ComputeSpec, DatasetSpec, SelectionSpec
    from suite.ranking import score_rows, tracked_places, write_ranking, write_selected
    from suite.report.load import Run
    from suite.sources import Source
    from suite.stages.data import load_data
    from suite.stages.models import LoadedModel, Weights
    from suite.stages.scoring import score
    from suite.stages.selection import select
    from suite.storage.cache import StageCache
    from tests.helpers import COMPUTE, SMOLLM2

    compute: ComputeSpec = replace(COMPUTE, threads=1)
    spec = replace(SMOLLM2, dtype="float32")
    model = LoadedModel(Weights(folder / "model", "tiny"), spec, compute)
    model.get()
    found: dict[str, Any] = {"start MB": peak_memory_mb()}

    def phase(name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        found[name] = time.process_time() - cpu
        found[f"{name} wall"] = time.perf_counter() - wall
        found[f"{name} MB"] = peak_memory_mb()
        return result

    dataset = DatasetSpec(name="rows", format="alpaca", k=K, limit=None, source=Source(path=str(folder / "rows.jsonl")))
    data = phase("read", lambda: load_data(dataset, None))
    assert len(data.samples) == count
    method = get_method("larf")(layer=1)
    scored = phase("score", lambda: score(method, model, data, seed=0, compute=compute, cache=StageCache(folder / "c")))
    selected = phase("select", lambda: select(SelectionSpec(name="top", k=min(K, count // 2)), scored.scores))

    def write() -> None:
        write_ranking(folder / "scores.parquet", scored.scores, data, selected)
        write_selected(folder / "selected.parquet", data, selected)
        score_rows(scored.scores, data, selected, tracked_places(count))

    phase("write", write)
    run = Run(folder, "rows", {"stages": "[]"}, "")
    ends = phase("report", lambda: run.ends("scores", ["rank", "id", "prompt", "response"], 20))
    assert ends is not None
    assert ends[0] == count
    assert ends[1]["id"][0].as_py() == selected[0]
    return found


def main(sizes: Sequence[int] = SIZES) -> None:
    from transformers import AutoTokenizer

    from tests.helpers import tiny_model

    rows, base = [], 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for count in (FEW, *sizes):
            folder = Path(scratch) / str(count)
            folder.mkdir()
            tiny_model("llama", layers=2).save_pretrained(folder / "model")
            AutoTokenizer.from_pretrained(smollm2_folder()).save_pretrained(folder / "model")
            write_rows(folder / "rows.jsonl", count)
            command = [sys.executable, "-m", "tests.benchmarks.bench_scale", "--one", str(count), str(folder)]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            phases = ("read", "score", "select", "write", "report")
            total = sum(found[p] for p in phases)
            if count == FEW:
                base = total
                continue
            each = [f"{found[p]:.1f}" for p in phases]
            cells = [f"{count:,}", *each, f"{1e3 * (total - base) / count:.3f}", f"{found['start MB']:.0f}"]
            cells += [f"{found[f'{p} MB']:.0f}" for p in ("read", "score", "report")]
            cells.append(f"{sum(found[f'{p} wall'] for p in phases):.0f}")
            rows.append(cells)
            print(" | ".join(cells), flush=True)
    columns = ["samples", "read, CPU s", "score", "select", "write", "report", "CPU ms a sample", "MB at the start",
               "peak MB after reading", "after scoring", "at the end", "wall s"]  # fmt: skip
    print_table("Scale", columns, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(int(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main([int(n) for n in sys.argv[1:]] or SIZES)
