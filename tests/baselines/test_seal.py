"""SEAL against its plain twin, and the edges of its bookkeeping."""

import copy
import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from baselines import get_method
from baselines.anchors import EMBEDDED
from baselines.losses import IGNORE
from baselines.method import Engine
from baselines.records import Sample, Scores
from baselines.samples import load_samples
from baselines.seal import load_selector, save_selector
from baselines.seal.data import encode, epoch_batches
from baselines.seal.method import downsampled
from baselines.seal.state import write_state
from baselines.seal.training import Bilevel, fresh_adapters, selector_weights
from eval.chat import ChatFormat
from eval.errors import DataError, KeelBenchError
from tests.baselines.seal_twin import train_selector
from tests.helpers import tiny_model

# Rates at which a random or a 135M model moves within a few steps.
FAST = {
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 3e-2,
    "selector_learning_rate": 0.05,
    "upper_weight": 0.9,
    "upper_weight_decay": 0.2,
}


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Short rows of the embedded data, so that the twin takes seconds."""
    rows = load_samples(EMBEDDED / "mini_benign.jsonl", source="mini").samples
    return sorted(rows, key=lambda s: len(s.prompt) + len(s.response))[:10]


@pytest.fixture(scope="module")
def safe_file(tmp_path_factory) -> str:
    """Six of the embedded refusals: fewer than the samples."""
    path = tmp_path_factory.mktemp("safe") / "safe.jsonl"
    path.write_text("".join((EMBEDDED / "alignment_refusals.jsonl").read_text().splitlines(keepends=True)[:6]))
    return str(path)


def seal(safe_file: str, **options):
    return get_method("seal")(safe_data=safe_file, **{**FAST, **options})


def logits_by_id(scores: Scores) -> np.ndarray:
    return scores.components["logit"][np.argsort(scores.ids)]


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class TestAgainstTheTwin:
    @pytest.mark.parametrize(
        "options",
        [{"selector": "softmax"}, {"selector": "sigmoid"}, {"upper_weight": 1.0}, {"pairing": "zip"}],
        ids=["softmax", "sigmoid", "first_epoch_all_safe", "zip"],
    )
    def test_tiny_float32(self, tiny_llama, samples, safe_file, options):
        model, tokenizer = tiny_llama
        method = seal(safe_file, **options)
        found = logits_by_id(method.score(model, tokenizer, samples, seed=3))
        twin = train_selector(
            copy.deepcopy(model), tokenizer, samples, method.safe_samples(), seed=3, **{**FAST, **options}
        ).numpy()
        assert np.ptp(twin) > 0.05  # the selector moved
        assert worst(found, twin) < 1e-4
        assert spearmanr(found, twin).statistic >= 0.9999

    def test_biases_and_untied_head(self, tokenizer, samples, safe_file):
        model = tiny_model("qwen2", tied=False)
        method = seal(safe_file, epochs=2)
        found = logits_by_id(method.score(model, tokenizer, samples))
        twin = train_selector(
            copy.deepcopy(model), tokenizer, samples, method.safe_samples(), **{**FAST, "epochs": 2}
        ).numpy()
        assert worst(found, twin) < 1e-4

    def test_smollm2(self, smollm2, samples, safe_file):
        """Float32 to 1e-4 of the largest logit; bfloat16 ranks as float32 does, and stays within a hundredth (measured
        0.002), although Adam makes small gradients large."""
        model, tokenizer = smollm2
        few = samples[:5]
        options = {**FAST, "epochs": 2, "batch_size": 3, "learning_rate": 2e-3}
        method = seal(safe_file, **options)
        found = logits_by_id(method.score(model, tokenizer, few))
        copied = copy.deepcopy(model)
        twin = train_selector(copied, tokenizer, few, method.safe_samples(), **options).numpy()
        assert worst(found, twin) < 1e-4
        assert spearmanr(found, twin).statistic >= 0.9999
        del copied
        half = copy.deepcopy(model).to(torch.bfloat16)
        coarse = logits_by_id(method.score(half, tokenizer, few))
        assert spearmanr(coarse, twin).statistic >= 0.995
        assert worst(coarse, twin) < 1e-2

    def test_micro_batches_add_up_to_the_logical_batch(self, tiny_llama, samples, safe_file):
        model, tokenizer = tiny_llama
        method = seal(safe_file)
        whole = method.score(model, tokenizer, samples, engine=Engine(tokens_per_batch=100_000))
        single = method.score(model, tokenizer, samples, engine=Engine(tokens_per_batch=1))
        assert worst(logits_by_id(single), logits_by_id(whole)) < 1e-5


class TestOrders:
    def test_cycle_visits_all_data_and_recycles_safe(self):
        batches = epoch_batches(10, 3, batch_size=4, pairing="cycle", seed=0, epoch=0)
        assert [len(b) for b, _ in batches] == [len(s) for _, s in batches] == [4, 4, 2]
        assert sorted(i for b, _ in batches for i in b) == list(range(10))
        safe = [i for _, s in batches for i in s]
        assert all(sorted(safe[i : i + 3]) == [0, 1, 2] for i in (0, 3, 6))

    def test_zip_ends_with_the_shorter(self):
        batches = epoch_batches(10, 3, batch_size=2, pairing="zip", seed=0, epoch=0)
        assert [len(b) for b, _ in batches] == [2, 1]
        assert sorted(i for _, s in batches for i in s) == [0, 1, 2]
        assert len(epoch_batches(3, 10, batch_size=2, pairing="zip", seed=0, epoch=0)) == 2

    def test_orders_differ_between_epochs_seeds_and_streams(self):
        def order(seed, epoch):
            return epoch_batches(50, 50, batch_size=50, pairing="cycle", seed=seed, epoch=epoch)[0]

        assert order(0, 0) == order(0, 0)
        assert order(0, 0)[0] != order(0, 1)[0] != order(1, 1)[0]
        assert order(0, 0)[0] != order(0, 0)[1]

    def test_zip_reports_the_never_visited(self, tiny_llama, samples, tmp_path):
        one = tmp_path / "one.jsonl"
        one.write_text((EMBEDDED / "alignment_refusals.jsonl").read_text().splitlines()[0])
        scores = seal(str(one), pairing="zip", epochs=2).score(*tiny_llama, samples)
        unseen = scores.components["visits"] == 0
        assert scores.info["never_visited"] == unseen.sum() >= 8
        # Softmax pushes them up: they count as the safest.
        assert scores.score[unseen].max() < scores.score[~unseen].min()

    def test_reordered_samples_keep_their_scores(self, tiny_llama, samples, safe_file):
        method = seal(safe_file, epochs=1)
        forward = method.score(*tiny_llama, samples, seed=1)
        backward = method.score(*tiny_llama, samples[::-1], seed=1)
        assert forward.ids == backward.ids[::-1]
        assert np.array_equal(forward.score, backward.score[::-1])
        other = method.score(*tiny_llama, samples, seed=2)
        assert not np.array_equal(forward.score, other.score)


class TestSelector:
    @pytest.mark.parametrize("selector", ["softmax", "sigmoid"])
    def test_starts_at_one(self, selector):
        assert torch.equal(selector_weights(torch.zeros(8), selector), torch.ones(8))

    def test_score_is_minus_the_logit(self, tiny_llama, samples, safe_file):
        scores = seal(safe_file, epochs=1).score(*tiny_llama, samples)
        assert np.array_equal(scores.score, -scores.components["logit"])
        assert scores.components["weight"].mean() == pytest.approx(1)

    def test_saved_loaded_and_transferred(self, tiny_llama, tokenizer, samples, safe_file, tmp_path):
        learnt = seal(safe_file, checkpoint_dir=str(tmp_path)).score(*tiny_llama, samples)
        (file,) = tmp_path.glob("*")
        assert file.name.startswith("selector-")
        other = tiny_model("qwen2")
        moved = get_method("seal")(selector_file=str(file)).score(other, tokenizer, samples[3:])
        assert np.array_equal(moved.score, learnt.score[3:])
        assert moved.info["selector_ids_unused"] == 3

    def test_missing_ids(self, samples, tmp_path):
        save_selector(tmp_path / "s.safetensors", [s.id for s in samples[:-1]], np.zeros(len(samples) - 1))
        with pytest.raises(KeelBenchError, match=f"no logit for 1 of {len(samples)} samples.*{samples[-1].id}"):
            get_method("seal")(selector_file=str(tmp_path / "s.safetensors")).score(None, None, samples)

    def test_round_trip_and_refusals(self, tmp_path):
        path = tmp_path / "deep" / "s.safetensors"
        save_selector(path, ["b", "a"], np.array([0.5, -1.25]))
        assert load_selector(path) == {"b": 0.5, "a": -1.25}
        with pytest.raises(ValueError, match="2 ids"):
            save_selector(path, ["a", "a"], np.zeros(2))
        with pytest.raises(DataError, match="no such file"):
            load_selector(tmp_path / "nowhere")
        broken = tmp_path / "broken"
        broken.write_bytes(b"\x80\x04not safetensors")
        with pytest.raises(DataError, match="not valid safetensors"):
            load_selector(broken)
        write_state(path, {"logits": torch.zeros(2)}, {"kind": "selector", "ids": ["a"]})
        with pytest.raises(DataError, match="1 ids"):
            load_selector(path)
        write_state(path, {"visits": torch.zeros(2)}, {"kind": "checkpoint"})
        with pytest.raises(DataError, match="not a selector"):
            load_selector(path)


class Killed(Exception):
    pass


def killed_after(samples_done: int) -> Engine:
    seen = 0

    def on_progress(done: int) -> None:
        nonlocal seen
        seen += done
        if seen >= samples_done:
            raise Killed

    return Engine(on_progress=on_progress)


class TestResuming:
    @pytest.mark.parametrize(("every", "after"), [(1, 5), (2, 9), (100, 8)])
    def test_killed_and_resumed_is_bit_for_bit_the_same(self, tiny_llama, samples, safe_file, tmp_path, every, after):
        """Within an epoch, near the end, and from an epoch's end alone."""
        model, tokenizer = tiny_llama
        straight = seal(safe_file).score(model, tokenizer, samples, seed=5)
        method = seal(safe_file, checkpoint_dir=str(tmp_path), checkpoint_every=every)
        with pytest.raises(Killed):
            method.score(model, tokenizer, samples, seed=5, engine=killed_after(after))
        (state,) = tmp_path.glob("seal-*.safetensors")
        assert not list(tmp_path.glob("*.partial"))
        told: list[int] = []
        resumed = method.score(model, tokenizer, samples, seed=5, engine=Engine(on_progress=told.append))
        assert np.array_equal(straight.score, resumed.score)
        assert straight.info == resumed.info
        assert sum(told) == len(samples)
        assert not state.exists()

    def test_another_run_does_not_take_the_checkpoint(self, tiny_llama, samples, safe_file, tmp_path):
        model, tokenizer = tiny_llama
        method = seal(safe_file, checkpoint_dir=str(tmp_path), checkpoint_every=1)
        with pytest.raises(Killed):
            method.score(model, tokenizer, samples, seed=5, engine=killed_after(5))
        other = method.score(model, tokenizer, samples, seed=6)
        assert np.array_equal(other.score, seal(safe_file).score(model, tokenizer, samples, seed=6).score)
        assert len(list(tmp_path.glob("seal-*"))) == 1

    def test_where_to_work_is_no_part_of_the_score(self):
        outside = {f.name for f in fields(get_method("seal")) if f.metadata.get("identity") is False}
        assert outside == {"checkpoint_dir", "checkpoint_every"}


class TestTheCallersModel:
    def test_is_unchanged(self, tiny_llama, samples, safe_file):
        model, tokenizer = tiny_llama
        model.train()
        model.lm_head.weight.requires_grad_(False)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        flags = {n: p.requires_grad for n, p in model.named_parameters()}
        attributes = set(vars(model))
        random = torch.get_rng_state()
        seal(safe_file, epochs=1).score(model, tokenizer, samples)
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
        assert set(vars(model)) == attributes
        assert all(p.grad is None for p in model.parameters())
        assert model.training
        assert torch.equal(random, torch.get_rng_state())

    def test_is_unchanged_by_a_failure_and_can_be_used_again(self, tiny_llama, samples, safe_file):
        model, tokenizer = tiny_llama
        names = list(model.state_dict())
        with pytest.raises(KeelBenchError, match="no_such_proj"):
            seal(safe_file, target_modules=["no_such_proj"]).score(model, tokenizer, samples)
        with pytest.raises(Killed):
            seal(safe_file).score(model, tokenizer, samples, engine=killed_after(1))
        assert list(model.state_dict()) == names
        assert all(p.requires_grad for p in model.parameters())
        seal(safe_file, epochs=1).score(model, tokenizer, samples)

    def test_with_adapters_is_refused(self, tiny_llama, samples, safe_file):
        model, tokenizer = tiny_llama
        lora = {"rank": 2, "alpha": 2, "target_modules": ["q_proj"], "seed": 0}
        with fresh_adapters(model, **lora) as (wrapped, _), pytest.raises(KeelBenchError, match="already has adapters"):
            seal(safe_file).score(wrapped, tokenizer, samples)

    def test_loss_that_is_not_finite(self, tiny_llama, samples, safe_file):
        model, tokenizer = tiny_llama
        with torch.no_grad():
            model.model.norm.weight[0] = float("nan")
        with pytest.raises(KeelBenchError, match="not finite at step 1 of epoch 1"):
            seal(safe_file).score(model, tokenizer, samples)


class TestEncoding:
    def test_plain_template(self, tokenizer):
        sample = Sample.of("Name a color.", "Blue.")
        plain = encode(tokenizer, [sample], template="plain", max_length=64)
        ids, labels = plain.ids[0].tolist(), plain.labels[0]
        target = [int(t) for t in labels if t != IGNORE]
        assert tokenizer.decode(ids) == "Human: Name a color.\nAssistant: Blue."
        assert tokenizer.decode(target) == " Blue." + tokenizer.eos_token
        assert "Human" not in ChatFormat(tokenizer).prompt_text("Name a color.")  # the caller's template stays

    def test_plain_template_changes_the_scores(self, tiny_llama, samples, safe_file):
        chat = seal(safe_file, epochs=1).score(*tiny_llama, samples)
        plain = seal(safe_file, epochs=1, template="plain").score(*tiny_llama, samples)
        assert plain.info["tokens"] < chat.info["tokens"]
        assert not np.array_equal(chat.score, plain.score)

    def test_truncation_is_counted_and_every_sample_scored(self, tiny_llama, samples, safe_file):
        long = Sample.of("Count.", "one two three " * 200)
        method = seal(safe_file, epochs=1)
        scores = method.score(*tiny_llama, [*samples, long], engine=Engine(max_length=256))
        assert scores.info["truncated"] == 1
        assert len(scores.ids) == len(samples) + 1
        own = seal(safe_file, epochs=1, max_length=256).score(*tiny_llama, [*samples, long])
        assert np.array_equal(scores.score, own.score)


class TestReports:
    def test_info(self, tiny_llama, samples, safe_file):
        scores = seal(safe_file).score(*tiny_llama, samples)
        assert scores.info["steps"] == 9
        assert scores.info["never_visited"] == 0
        assert scores.components["visits"].tolist() == [3.0] * len(samples)
        assert [p["upper_weight"] for p in scores.info["curve"][::3]] == pytest.approx([0.9, 0.7, 0.5])
        assert json.loads(json.dumps(scores.info)) == scores.info

    def test_downsampled(self):
        curve = [{"safe_loss": float(i)} for i in range(1000)]
        short = downsampled(curve, 200)
        assert len(short) == 200
        assert (short[0]["step"], short[-1]["step"]) == (1, 1000)
        assert downsampled(curve[:3], 200)[2] == {"step": 3, "safe_loss": 2.0}

    def test_the_safe_loss_falls(self, tiny_llama, samples, safe_file):
        curve = seal(safe_file, epochs=8, upper_weight_decay=0.0).score(*tiny_llama, samples).info["curve"]
        assert curve[-1]["safe_loss"] < curve[0]["safe_loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selector": "relu"}, "selector='relu'; known are softmax, sigmoid"),
        ({"pairing": "both"}, "pairing"),
        ({"template": "html"}, "template"),
        ({"epochs": 0}, "epochs=0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"upper_weight": 1.2}, "upper_weight=1.2"),
        ({"upper_weight": 0.1, "upper_weight_decay": 0.1}, "ends at -0.1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(KeelBenchError, match=message):
        get_method("seal")(**options)


def test_zero_factors_are_not_differentiated(tiny_llama, samples, safe_file):
    """With w = 1 the fine-tuning data's passes build no graph, and the adapters' update is the safe data's alone."""
    model, tokenizer = tiny_llama
    method = seal(safe_file, upper_weight=1.0)
    data = encode(tokenizer, samples, template="chat", max_length=512)
    safe = encode(tokenizer, method.safe_samples(), template="chat", max_length=512)
    updated = []
    for sources in ([0, 1, 2], [3, 4, 5]):
        with fresh_adapters(model, rank=4, alpha=4, target_modules=["q_proj"], seed=0) as (wrapped, adapters):
            bilevel = Bilevel(wrapped, adapters, data, safe, method.recipe(0))
            bilevel.step(sources, [0, 1, 2], 4096)
            updated.append({n: p.detach().clone() for n, p in adapters.items()})
    assert all(torch.equal(updated[0][n], updated[1][n]) for n in updated[0])


def test_configuration_matches_the_defaults():
    shipped = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "conf/method/seal.yaml"))
    assert shipped.pop("name") == "seal"
    defaults = asdict(get_method("seal")())
    assert shipped == {**defaults, "target_modules": list(defaults["target_modules"])}
