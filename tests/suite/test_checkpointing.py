"""A fine-tuning that was killed goes on from its last checkpoint and ends with the very same adapter."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baselines.records import Sample
from baselines.regularizer import build_regularizer
from suite.stages.finetuning import fine_tune_selection
from suite.stages.models import LoadedModel, Weights
from suite.storage.cache import StageCache
from suite.storage.unfinished import Unfinished
from suite.training.checkpointing import Checkpoints
from suite.training.fine_tune import attach_lora, fine_tune
from tests.helpers import COMPUTE, SMOLLM2, plan, tiny_model

SAMPLES = [
    Sample.of(f"Say the word number {i}", "word " * (1 + 3 * (i % 4)) + f"{i}", source="test") for i in range(13)
]
STEPS = 6  # 13 samples, 6 a step, two epochs


class Killed(BaseException):
    pass


@pytest.fixture
def recipe():
    # With dropout, so that a random state that is not restored would show.
    settings = ("batch_size=3", "accumulation=2", "epochs=2", "learning_rate=0.01", "dropout=0.1")
    return plan(None, *(f"train.{s}" for s in settings)).train


def train(tokenizer, recipe, folder: Path, *, die_after: int | None = None, seed: int = 3, **options):
    """The adapter's tensors and the curve; killed when ``die_after`` steps are done, before the last is kept."""
    model = attach_lora(tiny_model("llama"), recipe, seed=seed)
    torch.rand(7)  # whatever the process did before must not matter

    def on_step(step: int, total: int) -> None:
        assert total == STEPS
        if step == die_after:
            raise Killed

    log = fine_tune(
        model, tokenizer, SAMPLES, recipe, seed=seed, work_dir=folder / "work", on_step=on_step,
        checkpoints=Checkpoints(Unfinished(folder / "unfinished"), seconds=0, **options),
    )  # fmt: skip
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}, log


def same(a, b) -> bool:
    return a[1] == b[1] and all(torch.equal(a[0][n], b[0][n]) for n in a[0] | b[0])


@pytest.fixture
def undisturbed(tokenizer, recipe, tmp_path):
    return train(tokenizer, recipe, tmp_path / "undisturbed")


@pytest.mark.parametrize("deaths", [(1,), (2,), (3,), (4,), (6,), (2, 3, 6)])
def test_killed_at_any_step_the_adapter_is_the_same_bit_for_bit(tokenizer, recipe, undisturbed, tmp_path, deaths):
    for step in deaths:
        with pytest.raises(Killed):
            train(tokenizer, recipe, tmp_path, die_after=step)
    assert same(train(tokenizer, recipe, tmp_path), undisturbed)


def test_checkpoints_hold_no_pickle_and_two_of_them_stay(tokenizer, recipe, tmp_path):
    with pytest.raises(Killed):
        train(tokenizer, recipe, tmp_path, die_after=5)
    files = sorted(f.name.split(".")[0] for f in (tmp_path / "unfinished").iterdir())
    assert files == ["spent", "training-000000003", "training-000000004"]
    assert {f.suffix for f in (tmp_path / "unfinished").iterdir()} == {".safetensors", ".json"}
    assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_passed_over(tokenizer, recipe, undisturbed, tmp_path, caplog, damaged):
    with pytest.raises(Killed):
        train(tokenizer, recipe, tmp_path, die_after=5)
    files = sorted((tmp_path / "unfinished").glob("training-*"))
    for file in files[-damaged:]:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    caplog.set_level("INFO")
    assert same(train(tokenizer, recipe, tmp_path), undisturbed)
    assert caplog.text.count("is damaged") == damaged
    assert ("goes on after step 3 of 6" in caplog.text) == (damaged == 1)


def test_what_a_regulariser_counts_goes_on(tokenizer, recipe, tmp_path):
    def run(folder: Path, die_after: int | None = None):
        vcl = build_regularizer("vcl", {"tokens": "response", "k": 1})
        model = attach_lora(tiny_model("llama"), recipe, seed=3)

        def on_step(step: int, total: int) -> None:
            if step == die_after:
                raise Killed

        fine_tune(
            model, tokenizer, SAMPLES, recipe, seed=3, work_dir=folder / "work", on_step=on_step,
            auxiliary_loss=vcl.auxiliary_loss, hidden_states=True,
            checkpoints=Checkpoints(
                Unfinished(folder / "unfinished"), seconds=0, report=vcl.report, restore=vcl.go_on_from
            ),
        )  # fmt: skip
        return vcl.report()

    plain = run(tmp_path / "plain")
    assert plain["batches"] == 10  # five passes an epoch
    with pytest.raises(Killed):
        run(tmp_path / "killed", die_after=4)
    assert run(tmp_path / "killed") == plain


@pytest.fixture
def loaded(tokenizer, tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    spec = replace(SMOLLM2, dtype="float32", attention="sdpa")
    return LoadedModel(Weights(folder, "tiny"), spec, replace(COMPUTE, checkpoint_seconds=0.0))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.name != "manifest.json"
            and f.is_file()}  # fmt: skip


@pytest.mark.parametrize("die", ["in the training", "between the stages"])
def test_the_stages_adapter_and_its_curve_survive_a_kill(loaded, recipe, tmp_path, monkeypatch, die):
    """Also the checkpoints that are asked for, of which some were written before the kill."""
    import suite.stages.training_ranks as module

    options = {"regularizer": build_regularizer("none", {}), "seed": 3, "every": 2}
    straight = fine_tune_selection(loaded, SAMPLES, recipe, cache=StageCache(tmp_path / "a"), **options)
    cache = StageCache(tmp_path / "b")
    saved = []
    with monkeypatch.context() as patched:
        plain_save, plain_entry = module._save, StageCache.resumable_entry

        def save(adapted, job, tokenizer, folder, main):
            saved.append(folder)
            if len(saved) == 3 and die == "in the training":
                raise Killed
            plain_save(adapted, job, tokenizer, folder, main)

        def entry(self, stage, *args):
            if stage == "checkpoints" and die == "between the stages":
                raise Killed
            return plain_entry(self, stage, *args)

        patched.setattr(module, "_save", save)
        patched.setattr(StageCache, "resumable_entry", entry)
        with pytest.raises(Killed):
            fine_tune_selection(loaded, SAMPLES, recipe, cache=cache, **options)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_save", lambda *given: (saved.append(given[3]), plain_save(*given)))
        resumed = fine_tune_selection(loaded, SAMPLES, recipe, cache=cache, **options)
    assert [c.step for c in resumed.checkpoints] == [2, 4, 6]
    assert resumed.curve == straight.curve
    assert contents(resumed.folder) == contents(straight.folder)
    assert contents(resumed.checkpoints_entry.path) == contents(straight.checkpoints_entry.path)
    assert len(saved) == (5 if die == "in the training" else 4)  # three of the curve and the adapter; one in vain
    assert not list((tmp_path / "b" / "unfinished").iterdir())
    assert json.loads((resumed.folder / "manifest.json").read_text())["cost"]["tokens"] == straight.entry.cost.tokens


def test_a_curve_whose_files_were_damaged_is_trained_again(loaded, recipe, tmp_path, monkeypatch, caplog):
    import suite.stages.training_ranks as module

    options = {"regularizer": build_regularizer("none", {}), "seed": 3, "every": 2}
    cache = StageCache(tmp_path / "b")
    plain_save = module._save
    with monkeypatch.context() as patched:

        def save(adapted, job, tokenizer, folder, main):
            if folder.name == "step-4":
                raise Killed
            plain_save(adapted, job, tokenizer, folder, main)

        patched.setattr(module, "_save", save)
        with pytest.raises(Killed):
            fine_tune_selection(loaded, SAMPLES, recipe, cache=cache, **options)
    (curve,) = (tmp_path / "b" / "unfinished").glob("*/curve/step-2/adapter_model.safetensors")
    curve.write_bytes(curve.read_bytes()[:-1] + b"\xff")
    resumed = fine_tune_selection(loaded, SAMPLES, recipe, cache=cache, **options)
    straight = fine_tune_selection(loaded, SAMPLES, recipe, cache=StageCache(tmp_path / "a"), **options)
    assert "beside the checkpoint" in caplog.text
    assert contents(resumed.checkpoints_entry.path) == contents(straight.checkpoints_entry.path)
