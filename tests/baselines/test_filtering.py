"""Methods on rows in memory: the adapters give what the method gives, and keep rows, columns and gradients."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset

from baselines import get_method
from baselines.filtering import RowScorer, ScoreMonitor
from baselines.method import Engine, Method
from baselines.records import Sample, Scores
from eval.errors import CapacityError, DataError, KeelBenchError, UnknownNameError

ROWS = [{"instruction": f"Say {i}", "input": "", "output": "x" * (7 * i % 11 + 1), "n": i} for i in range(11)]
LENGTHS = [len(r["output"]) for r in ROWS]


def scorer(**options) -> RowScorer:
    return RowScorer(get_method("length")(), None, None, **options)


def test_map_adds_the_methods_scores(tmp_path):
    dataset = Dataset.from_list(ROWS)
    for size in (1, 4, 100):
        mapped = dataset.map(scorer(), batched=True, batch_size=size)
        assert mapped["safety_score"] == LENGTHS
        assert mapped.remove_columns("safety_score").to_list() == ROWS
    assert "mine" in dataset.map(scorer(column="mine"), batched=True).column_names


def test_filter_keeps_what_is_not_above_the_threshold():
    kept = Dataset.from_list(ROWS).filter(scorer().below(5), batched=True, batch_size=3)
    assert kept.to_list() == [r for r in ROWS if len(r["output"]) <= 5]


@pytest.mark.parametrize("options", [{"keep": 0.7}, {"drop": 3}])
def test_split_takes_the_highest_scores_and_keeps_the_order(options):
    parts = scorer().split(Dataset.from_list(ROWS), **options)
    worst = sorted(range(11), key=lambda i: -LENGTHS[i])[:3]
    assert parts["dropped"]["n"] == sorted(worst)
    assert parts["kept"]["n"] == [i for i in range(11) if i not in worst]


def test_rows_of_every_format_and_rows_that_cannot_be_scored():
    chat = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}]}]
    assert scorer().scores(Dataset.from_list(chat)).score.tolist() == [3]
    assert scorer().scores(Dataset.from_list([{"prompt": "a", "completion": "bc"}] * 2)).score.tolist() == [2, 2]
    with pytest.raises(DataError, match="rows, line 2: empty response"):
        scorer().scores(Dataset.from_list([ROWS[0], {**ROWS[1], "output": " "}]))
    with pytest.raises(DataError, match="fit no known format"):
        scorer()({"a": [1]})
    with pytest.raises(UnknownNameError, match="alpacca"):
        scorer(format="alpacca")
    with pytest.raises(KeelBenchError, match="give keep"):
        scorer().split(Dataset.from_list(ROWS))
    with pytest.raises(CapacityError, match="nothing to keep"):
        scorer().split(Dataset.from_list(ROWS), drop=11)


def test_methods_that_need_all_rows_are_not_cut_into_batches():
    random = RowScorer(get_method("random")(), None, None)
    with pytest.raises(KeelBenchError, match="use split"):
        random({"instruction": ["a"], "output": ["b"]})
    assert len(random.split(Dataset.from_list(ROWS), keep=0.5)["kept"]) == 6


def test_a_model_in_memory_is_scored_as_by_the_method(tiny_llama):
    model, tokenizer = tiny_llama
    method = get_method("representation_matching")(anchor_count=3)
    found = RowScorer(method, model, tokenizer).scores(Dataset.from_list(ROWS))
    wanted = method.score(model, tokenizer, [Sample.of(r["instruction"], r["output"]) for r in ROWS])
    assert found.ids == wanted.ids
    assert np.allclose(found.score, wanted.score, atol=1e-6)


def test_a_fingerprint_follows_model_and_options_and_nothing_else(tiny_llama):
    model, tokenizer = tiny_llama

    def fingerprint(**options) -> str:
        return RowScorer(get_method("representation_matching")(**options), model, tokenizer).fingerprint()

    first = fingerprint()
    assert fingerprint() == first != fingerprint(anchor_count=3)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert fingerprint() != first
    with pytest.raises(KeelBenchError, match="num_proc=1"):
        copy.copy(RowScorer(get_method("length")(), None, None))  # made anew as in another process, without a pickle


@dataclass(frozen=True, kw_only=True)
class Leaking(Method):
    """Leaves a gradient behind, as a careless method would; scores 1 and 2 in turn."""

    name: ClassVar[str] = "leaking"

    def score(
        self, model: Any, tokenizer: Any, samples: Sequence[Sample], *, seed: int = 0, engine: Engine = Engine()
    ) -> Scores:
        assert not model.training
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        return Scores(tuple(s.id for s in samples), np.arange(1.0, len(samples) + 1))


def test_a_monitor_measures_and_leaves_training_as_it_was(tiny_llama, tmp_path):
    from transformers import Trainer, TrainingArguments

    _, tokenizer = tiny_llama
    rows = {"kept": [Sample.of("a", "b"), Sample.of("c", "d")], "dropped": [Sample.of("e", "f")]}
    data = [{"input_ids": list(range(5, 15)), "labels": list(range(5, 15))}] * 8

    def train(*callbacks: Any) -> tuple[Any, dict]:
        torch.manual_seed(0)
        from tests.helpers import tiny_model

        fresh = tiny_model("llama")
        options = TrainingArguments(
            str(tmp_path), max_steps=5, per_device_train_batch_size=2, report_to=[], save_strategy="no",
            learning_rate=1e-2, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(fresh, args=options, train_dataset=data, processing_class=tokenizer, callbacks=[*callbacks])
        trainer.train()
        return trainer, fresh.state_dict()

    monitor = ScoreMonitor(Leaking(), rows, every=2)
    trainer, weights = train(monitor)
    assert monitor.history == [{"step": s, "kept": 1.5, "dropped": 1.0} for s in (0, 2, 4, 5)]
    logged = [entry for entry in trainer.state.log_history if "purify/kept" in entry]
    assert [entry["step"] for entry in logged] == [0, 2, 4, 5]
    _, undisturbed = train()
    assert all(torch.equal(weights[k], undisturbed[k]) for k in weights)
    with pytest.raises(KeelBenchError, match="as a whole"):
        ScoreMonitor(get_method("random")(), rows)
