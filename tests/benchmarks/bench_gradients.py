"""Gradient methods against their plain twins on real Alpaca rows: ``python -m tests.benchmarks.bench_gradients``.

One table out of one run on one machine. The engine scores all rows; the twin, being slow, every n-th of them by length,
so the ratio is of seconds a sample. Reference gradients are computed before the clock starts, on both sides. Engine and
twin take turns; the engine's better turn counts.

``peak`` is the share of the machine's measured matrix-product rate (same precision) at which the engine does the
arithmetic it cannot leave out: forward, activations' gradients, and one product a reference; the prompt's common head
is counted as if it were computed for every sample.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from baselines import Sample
from baselines.anchors import load_anchors
from baselines.bi_anchoring import BiAnchoring, spread_over_categories
from baselines.gradients.slices import slice_cosines
from baselines.gradients.whole import gradient_terms
from baselines.gradsafe import SYSTEM, GradSafe, _Prompts, load_prompts
from baselines.losses import supervised_labels
from baselines.method import Engine
from eval.chat import ChatFormat
from suite.machine import kept_memory
from tests.baselines import plain_twins
from tests.benchmarks.common import alpaca, matmul_peak, print_table, smollm2_folder

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


def main(rows: int = 64, twin_rows: int = 8) -> None:
    samples = alpaca(rows)
    by_length = sorted(range(len(samples)), key=lambda i: len(samples[i].prompt) + len(samples[i].response))
    chosen = [by_length[int((k + 0.5) * len(samples) / twin_rows)] for k in range(twin_rows)]
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    reference: dict[str, float] = {}  # seconds a sample of the float32 twin
    table = []
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=dtype, attn_implementation="eager").eval()
        body = sum(p.numel() for n, p in model.named_parameters() if "layers" in n)
        for method, make in METHODS.items():
            contest = make(model, tokenizer, samples)
            best, twin_total, rate = float("inf"), 0.0, 0.0
            found: dict[int, float] = {}
            for turn in range(TURNS):
                rate = max(rate, matmul_peak(dtype))
                with kept_memory():  # as the scoring stage does
                    seconds, scores = timed(contest.engine)
                best = min(best, seconds)
                own = chosen[turn::TURNS]
                seconds, plain = timed(lambda c=contest, r=own: [c.twin(samples[i]) for i in r])
                twin_total += seconds
                found |= dict(zip(own, plain, strict=True))
            twin = twin_total / len(chosen)
            each = best / len(samples)
            expected, ours = np.array([found[i] for i in chosen]), scores[chosen]
            share = 2 * body * contest.tokens * (2 + contest.references) / best / rate
            error = np.abs(ours - expected).max() / np.abs(expected).max()
            table.append(
                [method, str(dtype).removeprefix("torch."), f"{twin:.2f}", f"{best:.1f}", f"{twin / each:.1f}",
                 f"{reference.setdefault(method, twin) / each:.1f}", f"{1 / each:.1f}", f"{contest.tokens / best:.0f}",
                 f"{100 * share:.0f} %", f"{error:.1e}", f"{spearmanr(ours, expected).statistic:.4f}"]
            )  # fmt: skip
    columns = ["method", "dtype", "plain s a sample", "engine s", "ratio", "to float32 twin", "samples/s", "tokens/s",
               "of matmul peak", "max rel. error", "Spearman"]  # fmt: skip
    print_table(f"Gradients, SmolLM2, {rows} rows ({twin_rows} of them for the twin)", columns, table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
