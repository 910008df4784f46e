"""Guards fine-tuning over several processes: two gloo ranks train what one process trains."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from baselines import Sample
from baselines.regularizer import build_regularizer
from eval.errors import KeelBenchError
from suite.stages.training_ranks import Job, check_training, load_base, train, train_over_processes
from suite.training.data import PADDING_ROW, StepShares, StepSortedSampler, collate_rows
from tests.helpers import COMPUTE, SMOLLM2, plan, tiny_model
from tests.integration import training_group

# 13 rows in steps of 8: the second step of an epoch is short, and one process has no row in its last pass.
SAMPLES = [Sample.of(f"Say the word number {i}", "word " * (1 + 3 * (i % 4)) + f"{i}") for i in range(13)]
RECIPE = ["train.batch_size=2", "train.accumulation=4", "train.epochs=2", "train.learning_rate=0.01"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def job(weights, tmp_path) -> Job:
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir(), kept.mkdir()
    recipe, spec = plan(None, *RECIPE).train, replace(SMOLLM2, dtype="float32")
    compute = replace(COMPUTE, threads=1, training_tokens_per_pass=48)  # some passes are split, others are not
    none = build_regularizer("none", {})
    return Job(
        samples=SAMPLES, recipe=recipe, regularizer=none, seed=3, weights=weights, spec=spec, compute=compute, out=out,
        kept=kept, every=None,
    )  # fmt: skip


def outcome(job: Job) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors, and what the training reported."""
    (file,) = job.out.glob("*.safetensors")
    return load_file(file), json.loads((job.out / "training.json").read_text())


def agree(one: tuple, two: tuple):
    losses = [[point["loss"] for point in report["curve"]] for _, report in (one, two)]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert one[0].keys() == two[0].keys()
    for name, value in one[0].items():
        torch.testing.assert_close(value, two[0][name], rtol=1e-3, atol=1e-5)


def at(job: Job, out: Path) -> Job:
    out.mkdir(parents=True)
    return replace(job, out=out)


def test_two_processes_train_one_processs_adapter(job, tmp_path):
    one, two = at(job, tmp_path / "one"), at(job, tmp_path / "two")
    done = train(one, *load_base(one)), train_over_processes(two, 2)
    assert done[0] == done[1]
    assert done[0].tokens > 0
    assert done[0].flops > 0
    agree(outcome(one), outcome(two))


VCL = {"k": 1, "window": (0.0, 0.9), "weight": 5.0}
KINDS = {
    "lora": ("lora", "none"),
    "full": ("full", "none"),
    "penalize": ("lora", "penalize"),
    "concentrate": ("lora", "concentrate"),
}


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_train_what_one_trains_of_every_kind(job, sharding, tmp_path):
    """All kinds in one group of processes, since starting one takes longer than the trainings."""
    jobs = {}
    for kind, (recipe, objective) in KINDS.items():
        chosen = (
            build_regularizer("none", {})
            if objective == "none"
            else build_regularizer("vcl", {**VCL, "objective": objective})
        )
        tuned = plan(None, f"train={recipe}", *RECIPE).train
        jobs[kind] = replace(job, recipe=tuned, regularizer=chosen)
    spread = replace(job.compute, training_sharding=sharding)
    two = {kind: at(replace(job, compute=spread), tmp_path / "two" / kind) for kind, job in jobs.items()}
    training_group.run(list(two.values()), 2, tmp_path / "group")
    reports = {}
    for kind in KINDS:
        one = at(jobs[kind], tmp_path / "one" / kind)
        train(one, *load_base(one))
        agree(outcome(one), outcome(two[kind]))
        reports[kind] = [outcome(job)[1]["regularizer"] for job in (one, two[kind])]
    for kind in ("penalize", "concentrate"):
        alone, shared = reports[kind]
        assert shared["batches"] == alone["batches"] == 14  # seven passes an epoch, the padding's not among them
        assert shared["batches_without_signal"] == alone["batches_without_signal"] == 0
        assert shared["first_ratio"] == pytest.approx(alone["first_ratio"], rel=1e-4)


def test_settings_that_cannot_go_together(job):
    vcl, none = build_regularizer("vcl", {}), job.regularizer
    with pytest.raises(KeelBenchError, match="training_processes=3 divides neither"):
        check_training(job.recipe, replace(COMPUTE, training_processes=3), none)
    split = replace(job.recipe, accumulation=1)
    check_training(split, replace(COMPUTE, training_processes=2), none)
    with pytest.raises(KeelBenchError, match="regularizer=vcl reads whole passes"):
        check_training(split, replace(COMPUTE, training_processes=2), vcl)
    check_training(job.recipe, replace(COMPUTE, training_processes=2), vcl)
    with pytest.raises(KeelBenchError, match="training_sharding=full needs"):
        check_training(job.recipe, replace(COMPUTE, training_sharding="full"), none)
    with pytest.raises(KeelBenchError, match="training_processes=1"):
        check_training(job.recipe, replace(COMPUTE, training_processes=2, device_map="auto"), none)


def test_steps_are_shared_out_whole():
    assert StepShares.of(8, 2, 2) == StepShares(2, 8, 1)
    assert StepShares.of(8, 1, 4) == StepShares(4, 2, 1)
    sampler = StepSortedSampler([5, 1, 9, 3, 7], step_size=4, seed=0, multiple=4)
    order = list(sampler)
    assert len(sampler) == 8
    assert sorted(order[:5]) == list(range(5))
    assert order[5:] == [5, 5, 5]
    empty = collate_rows([PADDING_ROW, PADDING_ROW])
    assert empty["lengths"].tolist() == [0, 0]
    assert (empty["labels"] == -100).all()
