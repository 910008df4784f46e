"""VCL: the ratio's value, gradient and rows, and what it does to a model in training."""

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from baselines.losses import Batch, collate, supervised_forward, supervised_labels
from baselines.regularizer import (
    Regularizer,
    build_regularizer,
    get_regularizer,
    register_regularizer,
    regularizer_names,
)
from baselines.vcl import Vcl, variance_concentration
from eval.chat import ChatFormat
from eval.errors import KeelBenchError, UnknownNameError
from tests.helpers import tiny_model

CONF = Path(__file__).parents[2] / "conf/regularizer"
TURNS = [
    ("Say hello.", "Hello to you."),
    ("Name a color.", "Blue."),
    ("Count.", "One, two, three, four."),
    ("Go.", "No."),
]


def by_svd(residuals: torch.Tensor, k: int) -> torch.Tensor:
    squared = torch.linalg.svdvals(residuals).square()
    return squared[:k].sum() / squared.sum()


@pytest.fixture(scope="module")
def batch(tokenizer) -> Batch:
    chat = ChatFormat(tokenizer)
    return collate([supervised_labels(chat.conversation(*turns)) for turns in TURNS])


class TestRatio:
    @pytest.mark.parametrize("shape", [(9, 31), (31, 9), (12, 12)])
    @pytest.mark.parametrize("k", [1, 3])
    def test_value_and_gradient_are_the_decompositions(self, shape, k):
        torch.manual_seed(0)
        a = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        b = a.detach().clone().requires_grad_()
        found, expected = variance_concentration(a, k), by_svd(b, k)
        assert found.item() == pytest.approx(expected.item(), abs=1e-12)
        (3 * found).backward()
        (3 * expected).backward()
        assert torch.allclose(a.grad, b.grad, atol=1e-13, rtol=1e-10)

    def test_through_centring_and_what_comes_before(self):
        torch.manual_seed(1)
        x, weight = torch.randn(14, 6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
        gradients = []
        for ratio in (variance_concentration, by_svd):
            w = weight.clone().requires_grad_()
            rows = (x @ w.T).tanh()
            ratio(rows - rows.mean(0), 2).backward()
            gradients.append(w.grad)
        assert torch.allclose(*gradients, atol=1e-12)

    def test_equal_singular_values_have_a_finite_gradient(self):
        r = torch.eye(4, dtype=torch.float64).requires_grad_()
        ratio = variance_concentration(r, 2)
        ratio.backward()
        assert ratio.item() == pytest.approx(0.5)
        assert torch.isfinite(r.grad).all()

    def test_large_k_is_everything(self):
        assert float(variance_concentration(torch.randn(3, 5), 7)) == pytest.approx(1)


class TestRows:
    def test_layers(self):
        assert Vcl().layers(30) == list(range(9, 16))
        assert Vcl().layers(32) == list(range(10, 17))
        assert Vcl().layers(3) == [1]
        assert Vcl(window=(0.0, 0.4)).layers(3) == [0, 1]
        with pytest.raises(KeelBenchError, match="no layer of a model of 1 blocks"):
            Vcl().layers(1)

    def test_positions(self, batch):
        last, response, everything = (Vcl(tokens=t).positions(batch) for t in ("last", "response", "all"))
        assert last.sum(1).tolist() == [1] * len(TURNS)
        assert everything.sum(1).tolist() == batch.lengths.tolist()
        # The last position that the loss sees is the last one of a cut conversation.
        assert last.long().argmax(1).tolist() == (batch.lengths - 1).tolist()
        assert torch.equal(response, batch.labels != -100)
        assert (last <= response).all()
        assert (response <= everything).all()

    @pytest.mark.parametrize("center", ["batch", "layer"])
    @pytest.mark.parametrize("tokens", ["last", "response", "all"])
    def test_loss_is_the_written_out_formula(self, tokenizer, batch, center, tokens):
        model = tiny_model("llama", layers=4)
        vcl = Vcl(window=(0.25, 0.75), center=center, tokens=tokens, weight=7.0)
        out = supervised_forward(model, batch, hidden_states=True)
        blocks = []
        for layer in (1, 2, 3):
            rows = []
            for b, length in enumerate(batch.lengths.tolist()):
                supervised = [t for t in range(length) if batch.labels[b, t] != -100]
                chosen = {"last": supervised[-1:], "response": supervised, "all": range(length)}[tokens]
                rows += [out.hidden_states[layer][b, t] for t in chosen]
            block = torch.stack(rows)
            blocks.append(block - block.mean(0) if center == "layer" else block)
        r = torch.cat(blocks)
        expected = 7 * by_svd(r - r.mean(0) if center == "batch" else r, 3)
        found = vcl.auxiliary_loss(model, batch, out)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        other = Vcl(window=(0.25, 0.75), center=center, tokens=tokens, weight=7.0, objective="concentrate")
        assert float(other.auxiliary_loss(model, batch, out)) == pytest.approx(-expected.item(), rel=1e-5)

    def test_layer_indices_mean_block_outputs(self, batch):
        model = tiny_model("llama", layers=4)
        seen = []
        handle = model.model.layers[1].register_forward_hook(lambda m, i, o: seen.append(o))
        out = supervised_forward(model, batch, hidden_states=True)
        handle.remove()
        assert Vcl(window=(0.5, 0.5)).layers(4) == [2]
        assert torch.equal(out.hidden_states[2], seen[0])

    def test_half_precision_is_computed_in_single(self, batch):
        model = tiny_model("llama", layers=4).to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            out = supervised_forward(model, batch, hidden_states=True)
            loss = Vcl(window=(0.25, 0.75)).auxiliary_loss(model, batch, out)
        assert loss.dtype == torch.float32
        assert 0 < float(loss) <= 50 * (1 + 1e-6)


class TestNoSignal:
    def test_too_few_rows_add_nothing_and_are_reported_once(self, batch, caplog):
        model = tiny_model("llama")  # three blocks: one layer in the window, four rows
        vcl = Vcl()
        out = supervised_forward(model, batch, hidden_states=True)
        with caplog.at_level(logging.WARNING, logger="baselines.vcl"):
            for _ in range(3):
                loss = vcl.auxiliary_loss(model, batch, out)
                assert float(loss) == 0
        assert len(caplog.records) == 1
        assert "4 rows" in caplog.text
        assert vcl.report() == {
            "batches": 3,
            "batches_without_signal": 3,
            "first_ratio": None,
            "last_ratio": None,
        }
        (out.token_losses().mean() + loss).backward()  # the sum can still be differentiated

    def test_the_bound_is_exact(self, batch):
        model = tiny_model("llama")
        out = supervised_forward(model, batch, hidden_states=True)
        vcl = Vcl(k=2)  # k + 2 rows
        assert 0 < float(vcl.auxiliary_loss(model, batch, out)) < 50
        assert vcl.report()["batches_without_signal"] == 0

    def test_each_layers_mean_takes_a_row(self, batch):
        model = tiny_model("llama", layers=4)
        out = supervised_forward(model, batch, hidden_states=True)
        vcl = Vcl(window=(0.25, 0.75), k=9, center="layer")  # 12 rows less 3 means
        assert float(vcl.auxiliary_loss(model, batch, out)) == 0

    def test_identical_rows(self, batch):
        model = tiny_model("llama")
        out = supervised_forward(model, batch, hidden_states=True)
        same = tuple(torch.ones_like(h) for h in out.hidden_states)
        assert float(Vcl(k=1).auxiliary_loss(model, batch, replace(out, hidden_states=same))) == 0

    def test_hidden_states_are_asked_for(self, batch):
        model = tiny_model("llama")
        with pytest.raises(KeelBenchError, match="hidden_states=True"):
            Vcl().auxiliary_loss(model, batch, supervised_forward(model, batch))


def ratio_after_training(objective: str, batch: Batch) -> tuple[float, float]:
    model = tiny_model("llama", layers=4)
    vcl = Vcl(objective=objective, k=1, window=(0.25, 0.75))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(8):
        out = supervised_forward(model, batch, hidden_states=True)
        loss = out.token_losses().mean() + vcl.auxiliary_loss(model, batch, out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    report = vcl.report()
    return report["first_ratio"], report["last_ratio"]


def test_both_objectives_move_the_ratio_their_way(batch):
    start, penalized = ratio_after_training("penalize", batch)
    same_start, concentrated = ratio_after_training("concentrate", batch)
    assert start == same_start
    assert penalized < start - 0.02
    assert concentrated > start + 0.02


def test_smollm2(smollm2, batch):
    """On real weights the value is the decomposition's, and the gradient reaches the embeddings."""
    model, _ = smollm2
    out = supervised_forward(model, batch, hidden_states=True)
    rows = torch.stack([out.hidden_states[n][Vcl().positions(batch)] for n in range(9, 16)]).flatten(0, 1)
    expected = by_svd((rows - rows.mean(0)).detach(), 3)
    loss = Vcl().auxiliary_loss(model, batch, out)
    assert float(loss) == pytest.approx(50 * float(expected), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, out.hidden_states[1])
    assert math.isfinite(float(gradient.norm()))
    assert float(gradient.norm()) > 0


class TestRegistry:
    def test_names(self):
        assert {"none", "vcl"} <= set(regularizer_names())
        assert get_regularizer("vcl") is Vcl
        with pytest.raises(UnknownNameError, match="Did you mean 'vcl'"):
            get_regularizer("vlc")
        with pytest.raises(UnknownNameError, match="Did you mean 'window'"):
            build_regularizer("vcl", {"windw": [0.1, 0.2]})

    def test_none_adds_nothing(self, batch):
        model = tiny_model("llama")
        none = build_regularizer("none", {})
        out = supervised_forward(model, batch, hidden_states=none.hidden_states)
        assert out.hidden_states is None
        assert float(none.auxiliary_loss(model, batch, out)) == 0
        assert none.report() == {}

    def test_a_second_class_of_one_name(self):
        with pytest.raises(ValueError, match="already"):

            @register_regularizer("vcl")
            class Another(Regularizer):
                pass

    @pytest.mark.parametrize("name", ["none", "vcl"])
    def test_configuration_matches_the_defaults(self, name):
        shipped = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
        assert shipped.pop("name") == name
        built = build_regularizer(name, {k: tuple(v) if isinstance(v, list) else v for k, v in shipped.items()})
        assert built == get_regularizer(name)()

    def test_copies_count_apart(self):
        vcl = Vcl()
        assert copy.deepcopy(vcl) == vcl


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "both"}, "objective='both'; known are penalize, concentrate"),
        ({"tokens": "first"}, "tokens"),
        ({"center": "none"}, "center"),
        ({"k": 0}, "k=0"),
        ({"weight": -50.0}, "objective has the sign"),
        ({"window": (0.5, 0.3)}, "window"),
        ({"window": (0.5, 1.0)}, "window"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(KeelBenchError, match=message):
        Vcl(**options)
