"""Fine-tuning: the fast loss against a plain loop, reproducible, and learning anything at all."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from baselines.records import Sample
from eval.chat import ChatFormat
from eval.errors import KeelBenchError
from suite.training.data import StepSortedSampler
from suite.training.fine_tune import attach_lora, fine_tune
from tests.helpers import plan, tiny_model

SAMPLES = [
    Sample.of(f"Say the word number {i}", "word " * (1 + 3 * (i % 4)) + f"{i}", source="test") for i in range(13)
]


@pytest.fixture
def recipe():
    return plan(None, "train.batch_size=3", "train.accumulation=2", "train.epochs=2", "train.learning_rate=0.01").train


def plain_fine_tune(model, tokenizer, recipe, seed):
    """One conversation a forward pass, all logits, AdamW and the schedule by hand."""
    from transformers import get_scheduler

    chat = ChatFormat(tokenizer)
    step_size = recipe.batch_size * recipe.accumulation
    rows = [chat.conversation(s.prompt, s.response, max_length=recipe.max_length) for s in SAMPLES]
    sampler = StepSortedSampler([r.prompt_length + r.response_length - 1 for r in rows], step_size, seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = -(-len(rows) // step_size) * int(recipe.epochs)
    schedule = get_scheduler(recipe.schedule, optimiser, -int(-steps * recipe.warmup_ratio // 1), steps)
    losses = []
    for epoch in range(int(recipe.epochs)):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for start in range(0, len(order), step_size):
            chosen = [rows[i] for i in order[start : start + step_size]]
            tokens = sum(r.response_length for r in chosen)
            total = 0.0
            for row in chosen:
                ids = torch.tensor([row.ids])
                logits = model(input_ids=ids).logits[0, row.prompt_length - 1 : row.end_of_turn]
                loss = cross_entropy(logits, ids[0, row.prompt_length : row.end_of_turn + 1], reduction="sum") / tokens
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            losses.append(total)
    return losses


def adapters(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def test_fine_tuning_equals_a_plain_loop(tokenizer, recipe, tmp_path):
    fast, slow = (attach_lora(tiny_model("llama"), recipe, seed=3) for _ in range(2))
    log = fine_tune(fast, tokenizer, SAMPLES, recipe, seed=3, work_dir=tmp_path)
    losses = plain_fine_tune(slow, tokenizer, recipe, seed=3)
    assert [p["loss"] for p in log.curve] == pytest.approx(losses, rel=1e-4)
    plain = adapters(slow)
    for name, value in adapters(fast).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-5)


def test_splitting_passes_by_tokens_changes_nothing(tokenizer, recipe, tmp_path):
    curves = []
    for budget in (None, 60):
        model = attach_lora(tiny_model("llama"), recipe, seed=3)
        log = fine_tune(model, tokenizer, SAMPLES, recipe, seed=3, work_dir=tmp_path, tokens_per_pass=budget)
        curves.append([p["loss"] for p in log.curve])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def test_half_precision_training_follows_float32(smollm2_folder, tokenizer, recipe, tmp_path):
    """Autocast keeps copies of the adapters; were they stale, the loss would not fall with float32's."""
    from transformers import AutoModelForCausalLM

    recipe = replace(recipe, warmup_ratio=0.0)
    curves = []
    for dtype in (torch.float32, torch.bfloat16):
        base = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=dtype, attn_implementation="eager")
        model = attach_lora(base, recipe, seed=3)
        assert all(p.dtype == torch.float32 for p in adapters(model).values())
        log = fine_tune(model, tokenizer, SAMPLES[:6], recipe, seed=3, work_dir=tmp_path)
        curves.append([p["loss"] for p in log.curve])
    assert curves[0][-1] < curves[0][0] - 0.3
    assert curves[1] == pytest.approx(curves[0], rel=0.03)


def test_same_seed_same_adapter_other_seed_another(tokenizer, recipe, tmp_path):
    def train(seed: int) -> dict[str, torch.Tensor]:
        model = attach_lora(tiny_model("llama").bfloat16(), recipe, seed=seed)
        fine_tune(model, tokenizer, SAMPLES, recipe, seed=seed, work_dir=tmp_path)
        return adapters(model)

    first, again, other = train(1), train(1), train(2)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


def test_an_auxiliary_loss_is_added_and_sees_hidden_states(tokenizer, recipe, tmp_path):
    seen = []

    def penalty(model, batch, out):
        seen.append(len(out.hidden_states))
        return 5.0 * torch.ones(()) + 0.0 * out.logits.sum()

    runs = {}
    for name, auxiliary in (("plain", None), ("penalised", penalty)):
        model = attach_lora(tiny_model("llama"), recipe, seed=3)
        log = fine_tune(
            model, tokenizer, SAMPLES, recipe, seed=3, work_dir=tmp_path, auxiliary_loss=auxiliary,
            hidden_states=auxiliary is not None,
        )  # fmt: skip
        runs[name] = [p["loss"] for p in log.curve]
    assert set(seen) == {4}  # embeddings and three blocks
    assert runs["penalised"] == pytest.approx([loss + 5.0 for loss in runs["plain"]], rel=1e-4)


def test_a_model_without_the_target_modules_is_refused(recipe):
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(KeelBenchError, match="LoRA"):
        attach_lora(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=50)), recipe, 0)


def test_a_diverging_loss_is_an_error(tokenizer, recipe, tmp_path):
    model = attach_lora(tiny_model("llama"), recipe, seed=0)
    with torch.no_grad():
        next(p for p in model.parameters() if not p.requires_grad).fill_(float("nan"))
    with pytest.raises(KeelBenchError, match="not finite"):
        fine_tune(model, tokenizer, SAMPLES, recipe, seed=0, work_dir=tmp_path)


def test_the_sampler_shuffles_between_steps_and_sorts_within():
    lengths = [5, 1, 9, 3, 7, 2, 8]
    sampler = StepSortedSampler(lengths, 3, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(7))
    for start in (0, 3, 6):
        step = [lengths[i] for i in first[start : start + 3]]
        assert step == sorted(step, reverse=True)
    sampler.set_epoch(1)
    assert list(sampler) != first
