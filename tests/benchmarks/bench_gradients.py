"""Gradient methods against their plain twins on real Alpaca rows: ``python -m tests.benchmarks.bench_gradients``.

One table out of one run on one machine. The engine scores all rows; the twin, being slow, every n-th of them by length,
so the ratio is of seconds a sample. Reference gradients are computed before the clock starts, on both sides. Engine and
twin take turns and the best turn of each counts, because a shared machine slows both at random.

``peak`` is the share of the machine's measured matrix-product rate (same precision) at which the engine does the
arithmetic it cannot leave out: forward, activations' gradients, and one product a reference; the prompt's common head
is counted as if it were computed for every sample.

Environment: SUITE_DATA (default ../shared/data) holds alpaca/train.jsonl; SMOLLM2 names a folder with the weights.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from scipy.stats import spearmanr

from baselines import Sample
from baselines.anchors import load_anchors
from baselines.bi_anchoring import BiAnchoring, spread_over_categories
from baselines.gradients.slices import slice_cosines
from baselines.gradients.whole import gradient_terms
from baselines.gradsafe import SYSTEM, GradSafe, _Prompts, load_prompts
from baselines.losses import supervised_labels
from baselines.method import Engine
from baselines.samples import load_samples
from eval.chat import ChatFormat
from suite.machine import kept_memory
from tests.baselines import plain_twins

ANCHORS = 2  # pairs a set: the twin's references are slow, and their number does not change the time of a sample
TURNS = 2


@dataclass(frozen=True)
class Contest:
    """One method's engine on all rows and twin on one row, references ready."""

    engine: Callable[[], np.ndarray]
    twin: Callable[[Sample], float]
    tokens: int  # that the engine runs over
    references: int


def gradsafe(model: Any, tokenizer: Any, samples: list[Sample]) -> Contest:
    method = GradSafe()
    prompts = _Prompts(ChatFormat(tokenizer), method.system, method.supervise_end)
    slices = method._slices(model, prompts)
    items = [prompts.encode(s.prompt)[0] for s in samples]
    twin = plain_twins.GradSafe(model, tokenizer, *load_prompts(), SYSTEM, True, 1.0)

    def engine() -> np.ndarray:
        return slice_cosines(model, slices, len(items), items.__getitem__, str)[:, 0].numpy()

    return Contest(engine, lambda s: twin.score(s.prompt), sum(len(ids) for ids, _ in items), 0)


def bi_anchoring(model: Any, tokenizer: Any, samples: list[Sample]) -> Contest:
    method, chat = BiAnchoring(anchor_count=ANCHORS), ChatFormat(tokenizer)
    references = method._references(model, chat, Engine())
    items = [supervised_labels(chat.conversation(s.prompt, s.response), tokens=10) for s in samples]
    pairs = spread_over_categories(load_anchors())
    first, second = pairs[:ANCHORS], pairs[ANCHORS : 2 * ANCHORS]
    harmful = [(a.instruction, a.compliance) for a in first]
    refused = [[(a.instruction, a.refusal) for a in group] for group in (first, second)]
    twin = plain_twins.BiAnchoring(model, tokenizer, [harmful, *refused], 10)

    def engine() -> np.ndarray:
        terms = gradient_terms(model, len(items), items.__getitem__, str, references).directions()
        return terms[:, 0].numpy()

    def plain(sample: Sample) -> float:
        harm, safe1, safe2, _ = twin.terms((sample.prompt, sample.response), 10)
        return harm - safe1 - safe2

    return Contest(engine, plain, sum(len(ids) for ids, _ in items), 1)


METHODS = {"gradsafe": gradsafe, "bi_anchoring": bi_anchoring}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def peak(dtype: torch.dtype, size: int = 2048) -> float:
    """The best of several products of square matrices, FLOP/s."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(timed(lambda: a @ b)[0] for _ in range(8))


def smollm2(dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = os.environ.get("SMOLLM2")
    if folder is None:
        from suite.cache import StageCache
        from suite.stages.models import prepare
        from tests.helpers import COMPUTE
        from tests.helpers import SMOLLM2 as SPEC

        folder = str(prepare(SPEC, COMPUTE, StageCache(Path("cache"))).folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--twin-rows", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["bfloat16", "float32"])
    args = parser.parse_args()
    data = Path(os.environ.get("SUITE_DATA", "../shared/data")) / "alpaca" / "train.jsonl"
    samples = load_samples(data, source="alpaca").samples
    samples = samples[:: len(samples) // args.rows][: args.rows]
    by_length = sorted(range(len(samples)), key=lambda i: len(samples[i].prompt) + len(samples[i].response))
    step = len(samples) / args.twin_rows
    chosen = [by_length[int((k + 0.5) * step)] for k in range(args.twin_rows)]
    print(f"SmolLM2-135M, {len(samples)} Alpaca rows ({len(chosen)} for the twin), {torch.get_num_threads()} threads")
    head = "method        precision  engine s  samples/s  tokens/s   peak  twin s/sample   ratio  to float32 twin  Spearman  max error"
    print(head, flush=True)
    reference: dict[str, float] = {}  # seconds a sample of the first dtype's twin, float32 by default
    for name in args.dtypes:
        dtype = getattr(torch, name)
        model, tokenizer = smollm2(dtype)
        body = sum(p.numel() for n, p in model.named_parameters() if "layers" in n)
        for method in args.methods:
            contest = METHODS[method](model, tokenizer, samples)
            best, best_twin, rate = float("inf"), float("inf"), 0.0
            found: dict[int, float] = {}
            for turn in range(TURNS):
                rate = max(rate, peak(dtype))
                with kept_memory():  # as the scoring stage does
                    seconds, scores = timed(contest.engine)
                best = min(best, seconds)
                rows = chosen[turn::TURNS]
                seconds, plain = timed(lambda c=contest, r=rows: [c.twin(samples[i]) for i in r])
                best_twin = min(best_twin, seconds / len(rows))
                found |= dict(zip(rows, plain, strict=True))
            expected, ours = np.array([found[i] for i in chosen]), scores[chosen]
            share = 2 * body * contest.tokens * (2 + contest.references) / best / rate
            error = np.abs(ours - expected).max() / np.abs(expected).max()
            count = len(samples)
            against = reference.setdefault(method, best_twin) * count / best
            print(
                f"{method:13} {name:9} {best:9.2f} {count / best:10.2f} {contest.tokens / best:9.0f} {share:6.0%} "
                f"{best_twin:14.2f} {best_twin * count / best:7.1f} {against:16.1f} {spearmanr(ours, expected).statistic:9.4f} "
                f"{error:10.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
