"""What loading, scoring and fine-tuning cost in CPU seconds of one thread: ``python -m tests.benchmarks.bench_costs``.

Stages of few and of more rows, whose difference is the work itself (suite/planning/data/measured.yaml).
"""

import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

WORDS = ("river", "runs", "past", "small", "town", "people", "sell", "bread", "fish", "every", "morning", "school")


def main() -> None:
    begun = time.process_time()
    import torch

    from baselines import Sample, get_method
    from baselines.method import Engine
    from suite.stages.models import load
    from suite.training.fine_tune import attach_lora, fine_tune
    from tests.benchmarks.common import print_table, smollm2_folder
    from tests.helpers import COMPUTE, SMOLLM2, plan

    torch.set_num_threads(1)
    rows = [["imports", "", f"{time.process_time() - begun:.2f}"]]
    generator = random.Random(0)

    def samples(count: int, words: int) -> list[Sample]:
        texts = [" ".join(generator.choices(WORDS, k=words + words // 3)) for _ in range(count)]
        return [Sample.of(f"{n}: {text[: len(text) // 4]}", text[len(text) // 4 :]) for n, text in enumerate(texts)]

    def timed(name: str, tokens: int, started: float) -> None:
        rows.append([name, str(tokens or ""), f"{time.process_time() - started:.2f}"])

    started = time.process_time()
    model, tokenizer = load(smollm2_folder(), SMOLLM2, replace(COMPUTE, threads=1))
    timed("loading SmolLM2", 0, started)
    larf = get_method("larf")(layer=24)
    for count in (8, 40):
        started = time.process_time()
        scores = larf.score(model, tokenizer, samples(count, 90), engine=Engine())
        timed(f"LARF at block 24, {count} rows", int(scores.info.get("tokens", 0)), started)
    recipe = plan(None, "train.batch_size=8", "train.accumulation=1", "train.epochs=1").train
    tuned = attach_lora(model, recipe, 1)
    for count, words in ((8, 70), (32, 70), (8, 5), (48, 5)):
        chosen = samples(count, words)
        with tempfile.TemporaryDirectory() as scratch:
            started = time.process_time()
            log = fine_tune(tuned, tokenizer, chosen, recipe, seed=1, work_dir=Path(scratch), tokens_per_pass=2048)
        timed(f"LoRA, {count} rows of {log.tokens // count} tokens", log.tokens, started)
    print_table("Costs", ["stage", "tokens", "CPU s"], rows)


if __name__ == "__main__":
    main()
