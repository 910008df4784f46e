"""SEAL's epochs, engine against plain twin, on real rows: ``python -m tests.benchmarks.bench_seal [rows]``.

The twin puts every sequence through the model alone, with the logits of all its tokens, and differentiates all of them
(tests/baselines/seal_twin.py). The engine is timed in an epoch with w = 0.97, and in one with w = 1, the published
recipe's first, in which the fine-tuning data needs no backward pass. CPU seconds are the process's, all threads: they
tell more than seconds where other work shares the cores.
"""

import copy
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from baselines.records import Sample
from baselines.seal import Seal
from suite.machine import kept_memory
from tests.baselines.seal_twin import train_selector
from tests.benchmarks.common import alpaca, print_table, smollm2_folder

RATES = {"learning_rate": 1e-3, "selector_learning_rate": 0.05}  # large enough for one epoch to rank


def timed(work: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, float, float]:
    """A result, and the wall and CPU seconds it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(*arguments, **named)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main(count: int = 64) -> None:
    samples: list[Sample] = alpaca(count)
    later: dict[str, Any] = {"epochs": 1, "batch_size": max(1, count // 4), "upper_weight": 0.97, **RATES}
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    safe = Seal().safe_samples()
    timings: list[tuple[str, float, float, float, str]] = []  # name, wall, CPU, own twin's CPU, agreement
    reference, tokens = None, 0
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=dtype, attn_implementation="eager").eval()
        Seal(**{**later, "batch_size": 1}).score(model, tokenizer, samples[:1])  # warm up
        plain, wall, own = timed(train_selector, copy.deepcopy(model), tokenizer, samples, safe, **later)
        reference = plain if reference is None else reference
        timings.append((f"plain twin, {name}", wall, own, own, _spearman(plain, reference)))
        for label, upper_weight in (("w = 0.97", 0.97), ("w = 1", 1.0)):
            seal = Seal(**{**later, "upper_weight": upper_weight})
            with kept_memory():  # as the scoring stage does
                scores, wall, cpu = timed(seal.score, model, tokenizer, samples)
            tokens = int(scores.info["tokens"])
            logits = scores.components["logit"]  # the samples come in order of their ids
            agreement = _spearman(logits, reference) if upper_weight < 1 else ""
            timings.append((f"engine, {name}, {label}", wall, cpu, own, agreement))
    _, plain_wall, plain_cpu, _, _ = timings[0]
    rows = [
        [label, f"{wall:.1f}", f"{cpu:.1f}", f"{count / wall:.2f}", f"{tokens / wall:.0f}", f"{plain_wall / wall:.2f}",
         f"{plain_cpu / cpu:.2f}", f"{own / cpu:.2f}", agreement]
        for label, wall, cpu, own, agreement in timings
    ]  # fmt: skip
    columns = ["epoch", "s", "CPU s", "samples/s", "tokens/s", "x float32 twin", "the same in CPU s",
               "x twin of its dtype in CPU s", "Spearman"]  # fmt: skip
    print_table(f"SEAL, SmolLM2, {count} rows and as many refusals", columns, rows)


def _spearman(a: Any, b: Any) -> str:
    return f"{spearmanr(a, b).statistic:.4f}"


if __name__ == "__main__":
    main(int(sys.argv[1])) if len(sys.argv) > 1 else main()
