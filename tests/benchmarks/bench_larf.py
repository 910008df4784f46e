"""LARF's scores, engine against plain twin, on real rows: ``python -m tests.benchmarks.bench_larf``.

The twin runs one conversation a forward pass through the whole model, head included, and keeps all hidden states.
Then memory: peak of a process that scores 500 rows against one that scores 10,000.
"""

import subprocess
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from baselines.anchors import load_anchors
from baselines.larf import Larf
from baselines.method import Engine
from baselines.records import Sample
from eval.chat import ChatFormat
from suite.machine import kept_memory, peak_memory_mb
from tests.benchmarks.common import alpaca, matmul_peak, print_table, smollm2_folder

LAYER = 13


def plain_scores(model, tokenizer, samples) -> list[float]:
    """Batch 1, all hidden states, full logits."""
    chat = ChatFormat(tokenizer)

    @torch.inference_mode()
    def state(prompt: str, response: str) -> torch.Tensor:
        conversation = chat.conversation(prompt, response)
        out = model(input_ids=torch.tensor([conversation.ids]), output_hidden_states=True, use_cache=False)
        return out.hidden_states[LAYER + 1][0, conversation.end_of_turn].float()

    anchors = load_anchors()
    unsafe = torch.stack([state(a.instruction, a.compliance) for a in anchors]).mean(0)
    safe = torch.stack([state(a.instruction, a.refusal) for a in anchors]).mean(0)
    cosine = torch.nn.functional.cosine_similarity
    states = [state(s.prompt, s.response) for s in samples]
    return [float(cosine(h, unsafe, dim=0) - cosine(h, safe, dim=0)) for h in states]


def main(count: int = 128) -> None:
    from scipy.stats import spearmanr

    samples = alpaca(count)
    rows = []
    reference = 0.0  # seconds of the float32 twin
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=dtype, attn_implementation="eager").eval()
        tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
        chat = ChatFormat(tokenizer)
        scored = [(s.prompt, s.response) for s in samples]
        scored += [(a.instruction, text) for a in load_anchors() for text in (a.compliance, a.refusal)]
        tokens = sum(len(chat.conversation(*pair).ids) for pair in scored)
        larf = Larf(layer=LAYER)
        larf.score(model, tokenizer, samples[:8], engine=Engine())  # warm up
        engine_seconds = plain_seconds = float("inf")
        for _ in range(2):  # the better turn of each
            start = time.perf_counter()
            with kept_memory():  # as the scoring stage does
                fast = larf.score(model, tokenizer, samples, engine=Engine())
            engine_seconds = min(engine_seconds, time.perf_counter() - start)
            start = time.perf_counter()
            slow = plain_scores(model, tokenizer, samples)
            plain_seconds = min(plain_seconds, time.perf_counter() - start)
        reference = reference or plain_seconds
        block = sum(p.numel() for p in model.model.layers[0].parameters())
        share = 2 * block * (LAYER + 1) * tokens / engine_seconds / matmul_peak(dtype)
        error = max(abs(a - b) for a, b in zip(fast.score, slow, strict=True)) / max(map(abs, slow))
        rows.append(
            [str(dtype).removeprefix("torch."), f"{plain_seconds:.1f}", f"{engine_seconds:.1f}",
             f"{plain_seconds / engine_seconds:.1f}", f"{reference / engine_seconds:.1f}",
             f"{len(scored) / engine_seconds:.1f}",
             f"{tokens / engine_seconds:.0f}", f"{100 * share:.0f} %", f"{error:.1e}",
             f"{spearmanr(fast.score, slow).statistic:.5f}"]
        )  # fmt: skip
    columns = ["dtype", "plain s", "engine s", "ratio", "to float32 twin", "samples/s", "tokens/s", "of matmul peak",
               "max rel. error", "Spearman"]  # fmt: skip
    print_table(f"LARF, SmolLM2, layer {LAYER}, {count} rows and 100 anchors", columns, rows)
    memory()


def memory() -> None:
    """Peak resident memory of a process of its own for each size; the rows are the same 500, again and again."""
    peaks = {}
    for count in (500, 10_000):
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.bench_larf", str(count)],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[count] = float(done.stdout.split()[-1])
    ratio = peaks[10_000] / peaks[500]
    print_table(
        "Peak memory of scoring",
        ["rows", "MB"],
        [[str(n), f"{mb:.0f}"] for n, mb in peaks.items()] + [["ratio", f"{ratio:.3f}"]],
    )


def score_many(count: int) -> None:
    """Score ``count`` short rows of equal make and print the process's peak memory in MB."""
    base = [Sample.of(f"Question {i}", "An answer of a few words. " * (1 + i % 6)) for i in range(500)]
    samples = [
        Sample(f"{i}", s.instruction, s.response) for i, s in zip(range(count), base * (count // 500), strict=True)
    ]
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.bfloat16).eval()
    Larf(layer=1).score(model, AutoTokenizer.from_pretrained(smollm2_folder()), samples)
    print(peak_memory_mb())


if __name__ == "__main__":
    score_many(int(sys.argv[1])) if len(sys.argv) > 1 else main()
