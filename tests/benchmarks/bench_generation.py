"""Generation through this project against the libraries' own calls: ``python -m tests.benchmarks.bench_generation``.

The same prompts, the same engine, taken in turn, the fastest of three: what is measured is what this project adds
around transformers' ``generate`` (rendering, tokenising, sorting, cutting, decoding) and around vLLM's. With SUITE_DATA
the prompts are HarmBench's.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.benchmarks import BenchmarkSpec, load_benchmark
from eval.generation import generate
from eval.records import Completion, Prompt
from tests.benchmarks.common import ROOT, print_table, smollm2_folder

COUNT, NEW_TOKENS, REPEATS = 200, 48, 3
BATCH = 64  # rows of a plain transformers batch


def prompts() -> list[Prompt]:
    root = os.environ.get("SUITE_DATA")
    path = Path(root) / "harmbench" / "harmbench_behaviors_text_all.csv" if root else None
    if path is not None and path.is_file():
        spec = BenchmarkSpec(
            name="harmbench", prompt_column="Behavior", expected="refuse", where={"FunctionalCategory": ["standard"]}
        )
    else:
        path = ROOT / "eval" / "data" / "mini_harmful.jsonl"
        spec = BenchmarkSpec(name="mini_harmful", prompt_column="prompt", expected="refuse")
    print(f"prompts: {path.name}")
    return load_benchmark(spec, path)[:COUNT]


def plain_transformers(model: Any, tokenizer: Any, texts: Sequence[str]) -> int:
    """Batches of 64 in the prompts' order, as in transformers' documentation."""
    tokens = 0
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(list(texts[start : start + BATCH]), return_tensors="pt", padding=True, padding_side="left",
                          add_special_tokens=False)  # fmt: skip
        with torch.inference_mode():
            out = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = out[:, batch["input_ids"].shape[1] :]
        answers = tokenizer.batch_decode(new, skip_special_tokens=True)
        assert len(answers) == len(new)
        tokens += int((new != tokenizer.pad_token_id).sum())
    return tokens


def plain_vllm(engine: Any, texts: Sequence[str]) -> int:
    from vllm import SamplingParams

    outputs = engine.generate(list(texts), SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS), use_tqdm=False)
    return sum(len(out.outputs[0].token_ids) for out in outputs)


def ours(answer: Callable[[], list[Completion]]) -> int:
    return sum(c.n_tokens for c in answer())


def in_turn(candidates: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Tokens a second of each, the fastest of three rounds."""
    best = dict.fromkeys(candidates, 0.0)
    for _ in range(REPEATS):
        for name, run in candidates.items():
            start = time.perf_counter()
            tokens = run()
            best[name] = max(best[name], tokens / (time.perf_counter() - start))
    return best


def main() -> None:
    folder, asked = smollm2_folder(), prompts()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": p.text}], tokenize=False, add_generation_prompt=True)
        for p in asked
    ]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    through = partial(generate, model, tokenizer, asked, max_new_tokens=NEW_TOKENS, tokens_per_batch=8192)
    rates = in_turn({
        "transformers' own": partial(plain_transformers, model, tokenizer, texts),
        "backend=hf": partial(ours, through),
    })  # fmt: skip
    del model
    started = time.perf_counter()
    from eval.vllm_engine import VllmEngine

    with VllmEngine(
        folder, dtype="bfloat16", max_model_len=4096, max_num_seqs=128, gpu_memory_utilization=0.85,
        kv_cache_gib=None, enforce_eager=None, tensor_parallel_size=1,
    ) as engine:  # fmt: skip
        starting = time.perf_counter() - started
        rates |= in_turn({
            "vLLM's own": partial(plain_vllm, engine._engine, texts),
            "backend=vllm": partial(ours, partial(engine.generate, asked, max_new_tokens=NEW_TOKENS)),
        })  # fmt: skip
    hf, vllm = rates["transformers' own"], rates["vLLM's own"]
    print_table(
        f"{len(asked)} prompts, {NEW_TOKENS} new tokens at most, bfloat16; vLLM started in {starting:.0f} s",
        ("", "tokens/s", "of the library's own"),
        [
            (name, f"{rate:.0f}", f"{100 * rate / (vllm if 'vllm' in name.lower() else hf):.0f} %")
            for name, rate in rates.items()
        ],
    )


if __name__ == "__main__":
    main()
