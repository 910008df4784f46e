"""Guards models that a device map spreads: every engine brings its tensors to the device that needs them."""

import numpy as np
import pytest
import torch

from baselines import Sample, get_method
from baselines.losses import collate, supervised_forward
from eval.generation import generate_ids
from tests.helpers import tiny_model
from tests.two_devices import OnDevice, spread, two_devices

SECOND = ("model.layers.1", "model.layers.2", "model.norm", "lm_head")
SAMPLES = [Sample.of(f"Name {n} rivers.", "Rhine, Danube, Volga, Elbe, Oder."[: 6 * n]) for n in range(1, 5)]


@pytest.fixture
def models(monkeypatch):
    """One on the CPU, and the same one spread over two devices."""
    return tiny_model("llama", tied=False), spread(tiny_model("llama", tied=False), SECOND, monkeypatch)


def test_devices_that_differ_refuse_each_other():
    with two_devices():
        one, two = torch.ones(2, device="meta:0"), torch.ones(2, device="meta:1")
        assert (one + two.to("meta:0")).tolist() == [2, 2]
        for other in (two, torch.ones(2)):
            with pytest.raises(RuntimeError, match="tensors of two devices"):
                one + other


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("larf", {"layer": 2}),
        ("representation_matching", {}),
        ("gradsafe", {}),
        ("bi_anchoring", {}),
    ],
)
def test_scores_are_those_of_one_device(models, tokenizer, method, options):
    plain, spread_out = models
    expected = get_method(method)(**options).score(plain, tokenizer, SAMPLES)
    with two_devices():
        found = get_method(method)(**options).score(spread_out, tokenizer, SAMPLES)
    assert found.ids == expected.ids
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-4, atol=1e-6)


def test_a_training_pass_has_the_gradients_of_one_device(models):
    plain, spread_out = models
    batch = collate([([5, 6, 7, 8], [-100, 7, 8, 9]), ([5, 9], [-100, 3])])
    expected = supervised_forward(plain, batch).sequence_losses()
    expected.sum().backward()
    with two_devices():
        out = supervised_forward(spread_out, batch.to(torch.device("meta:0")))
        losses = out.sequence_losses()
        losses.sum().backward()
        assert isinstance(losses, OnDevice)
        assert losses.index == 1
    assert losses.tolist() == pytest.approx(expected.tolist())
    for one, two in zip(plain.parameters(), spread_out.parameters(), strict=True):
        torch.testing.assert_close(two.grad.values, one.grad)


def test_answers_are_those_of_one_device(models):
    plain, spread_out = models
    prompts, asked = [[5, 6, 7], [8]], (6, [2], 2)
    expected = generate_ids(plain, prompts, *asked)
    with two_devices():
        assert generate_ids(spread_out, prompts, *asked) == expected
