"""Guards fine-tuning over several processes: two gloo ranks train what one process trains."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from baselines import Sample
from baselines.regularizer import build_regularizer
from eval.errors import KeelBenchError
from suite.stages.training_ranks import Job, check_training, load_base, train, train_over_processes
from suite.training.data import PADDING_ROW, StepShares, StepSortedSampler, collate_rows
from tests.helpers import COMPUTE, SMOLLM2, plan, tiny_model

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
    return Job(SAMPLES, recipe, build_regularizer("none", {}), 3, weights, spec, compute, out, kept, None)


def trained(job: Job, processes: int, tmp_path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The tensors, and the losses of all steps."""
    out = tmp_path / f"{processes}-{job.compute.training_sharding}"
    out.mkdir()
    job = replace(job, out=out)
    done = train(job, *load_base(job)) if processes == 1 else train_over_processes(job, processes)
    assert done.tokens > 0
    assert done.flops > 0
    (file,) = out.glob("*.safetensors")
    return load_file(file), [p["loss"] for p in json.loads((out / "training.json").read_text())["curve"]]


def agree(one, two):
    assert one[1] == pytest.approx(two[1], rel=1e-4)
    assert one[0].keys() == two[0].keys()
    for name, value in one[0].items():
        torch.testing.assert_close(value, two[0][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_train_one_processs_adapter(job, sharding, tmp_path):
    one = trained(job, 1, tmp_path)
    two = trained(replace(job, compute=replace(job.compute, training_sharding=sharding)), 2, tmp_path)
    assert len(one[1]) == 4
    agree(one, two)


def test_settings_that_cannot_go_together(job):
    vcl, none = build_regularizer("vcl", {}), build_regularizer("none", {})
    with pytest.raises(KeelBenchError, match="training_processes=3 divides neither"):
        check_training(job.recipe, replace(COMPUTE, training_processes=3), none)
    split = replace(job.recipe, accumulation=1)
    check_training(split, replace(COMPUTE, training_processes=2), none)
    with pytest.raises(KeelBenchError, match="regularizer=vcl trains in one process"):
        check_training(split, replace(COMPUTE, training_processes=2), vcl)
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
