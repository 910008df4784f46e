"""Floating-point operations of a decoder, by formula: what its matrix products take, two operations a multiply-add.

With n a sequence's tokens, P a block's matrix parameters, L blocks, A = query heads x their width, V the vocabulary, d
the model's width and s the positions whose logits are computed:

    forward      L (2 P n + 4 A n^2) + 2 V d s
    backward     L (2 P n + 8 A n^2) + 2 V d s      of the activations; a trained parameter of a block takes 2 n more

as in Kaplan et al. 2020 (section 2.1), with attention's own products and the head. Every sequence counts by itself, so
neither padding nor that an engine computes a common prefix once changes anything. Causal attention counts in full, as
PyTorch's own counter does and as eager attention computes it. Norms, activations and embeddings are not products.
"""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """What a stage's computation came to."""

    tokens: int = 0
    flops: float | None = None  # None = nobody counted
    gpus: int = 0  # that worked on it


@dataclass(frozen=True)
class Shape:
    """What a decoder's operations depend on."""

    parameters: float  # of all blocks' matrices, those of adapters included
    trained: float  # those of them that are trained
    blocks: int
    attention: int  # query heads x width of a head
    head: int  # vocabulary x width

    @classmethod
    def of(cls, model: Any) -> "Shape":
        """Of a loaded transformers model, LoRA adapters or not."""
        root = model.get_base_model() if hasattr(model, "get_base_model") else model
        # By their features, since a quantised weight is packed; a LoRA layer has features too, but its weights inside.
        linear = [
            m for m in root.get_decoder().layers.modules() if hasattr(m, "in_features") and "weight" in m._parameters
        ]
        sizes = [(m.in_features * m.out_features, m.weight.requires_grad) for m in linear]
        return cls(sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains), *_configured(root.config))

    @classmethod
    def of_folder(cls, weights: Path, adapter: Path | None = None) -> "Shape | None":
        """Of a model's folder and perhaps an adapter's, by their headers; None where no safetensors are known here."""
        from transformers import AutoConfig

        parameters = matrix_parameters(weights)
        if not parameters:
            return None
        config = AutoConfig.from_pretrained(weights, trust_remote_code=False)
        return cls(parameters + (matrix_parameters(adapter) if adapter else 0), 0, *_configured(config))

    def upto(self, blocks: int) -> "Shape":
        """The first (or as many other) ``blocks`` alone."""
        share = blocks / self.blocks
        return replace(self, parameters=share * self.parameters, trained=share * self.trained, blocks=blocks)

    def forward(self, lengths: Iterable[float], positions: float = 0) -> float:
        """Of sequences of ``lengths`` tokens, with logits at ``positions`` of them in all."""
        tokens, squares = _sums(lengths)
        return 2 * self.parameters * tokens + 4 * self.attention * self.blocks * squares + 2 * self.head * positions

    def backward(self, lengths: Iterable[int], positions: float = 0) -> float:
        """Of the way back to the first block, for the activations and for whatever is trained in the blocks."""
        tokens, squares = _sums(lengths)
        products = 2 * (self.parameters + self.trained) * tokens + 8 * self.attention * self.blocks * squares
        return products + 2 * self.head * positions

    def answering(self, prompts: Iterable[int], answers: Iterable[int]) -> float:
        """Of answers of so many tokens to prompts of so many, each token read once (keys and values are kept).

        The first new token comes of the prompt's last position; the last one is read by nobody.
        """
        total = 0.0
        for prompt, new in zip(prompts, answers, strict=True):
            if new:
                read = prompt + new - 1
                pairs = prompt**2 + (new - 1) * prompt + (new - 1) * new / 2
                total += 2 * self.parameters * read + 4 * self.attention * self.blocks * pairs + 2 * self.head * new
        return total


def matrix_parameters(folder: Path) -> int:
    """Parameters of the weight matrices in the blocks of a model's or an adapter's folder, read off the headers."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(size))
        for name, tensor in header.items():
            if ".layers." in name and len(tensor.get("shape", ())) == 2:
                count += tensor["shape"][0] * tensor["shape"][1]
    return count


def _configured(config: Any) -> tuple[int, int, int]:
    """Blocks, query heads x their width, vocabulary x width."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return text.num_hidden_layers, heads * width, text.vocab_size * text.hidden_size


def _sums(lengths: Iterable[float]) -> tuple[float, float]:
    """Of the lengths and of their squares."""
    given = [float(n) for n in lengths]
    return sum(given), sum(n * n for n in given)
