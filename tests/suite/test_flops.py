"""Counted operations against PyTorch's own counter, on a model as it is saved."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from suite.cache import Cost, Entry
from suite.flops import block_parameters, compute_costs, matmul_peak
from suite.plan import LoraRecipe
from suite.training import attach_lora
from tests.helpers import tiny_model

TOKENS = 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``(a model of three blocks, its folder)``."""
    model, folder = tiny_model("llama"), tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder, safe_serialization=True)
    return model, folder


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_block_parameters_are_those_of_the_model(saved):
    model, folder = saved
    expected = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2)
    assert block_parameters(folder) == expected > 0


def test_forward_is_two_a_parameter_and_token(saved):
    model, folder = saved
    ids = torch.randint(3, 1000, (1, TOKENS))
    found = counted(lambda: model.model(ids))  # without the head
    assert found == pytest.approx(2 * block_parameters(folder) * TOKENS, rel=0.2)  # attention's products are the rest


def test_lora_training_is_four(saved):
    model, folder = saved
    recipe = LoraRecipe(
        name="t", rank=1, alpha=1, dropout=0.0, target_modules=("q_proj", "v_proj"), learning_rate=1e-3, epochs=1,
        batch_size=1, accumulation=1, warmup_ratio=0.0, schedule="constant", weight_decay=0.0, max_grad_norm=1.0,
        max_length=64,
    )  # fmt: skip
    adapted = attach_lora(model, recipe, 0)
    ids = torch.randint(3, 1000, (1, TOKENS))
    found = counted(lambda: adapted.base_model.model.model(ids).last_hidden_state.sum().backward())
    assert found == pytest.approx(4 * block_parameters(folder) * TOKENS, rel=0.35)


def test_costs_of_stages(saved):
    _, folder = saved
    entries = [
        Entry("adapter", "k", Path(), Cost(2.0, 1000, 0.0)),
        Entry("completions", "a", Path(), Cost(1.0, 300, 0.0), cached=True),
        Entry("completions", "b", Path(), Cost(1.0, 100, 0.0), cached=True),
        Entry("scores", "s", Path(), Cost(1.0, 100, 0.0)),
    ]
    costs = compute_costs(entries, folder, device="cpu", dtype="float32")
    n = block_parameters(folder)
    assert costs["cost/adapter/flops"] == 4 * n * 1000
    assert costs["cost/completions/flops"] == 2 * n * 400
    assert costs["cost/completions/mfu"] is None  # from the cache: nobody knows whose machine that was
    assert 0 < costs["cost/adapter/mfu"] < 1
    assert costs["cost/adapter/mfu"] == pytest.approx(4 * n * 500 / matmul_peak("cpu", "float32"), rel=0.9)
    assert not any(k.startswith("cost/scores") for k in costs)
    assert compute_costs(entries, folder / "nothing", device="cpu", dtype="float32") == {}
