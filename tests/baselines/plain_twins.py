"""Slow, obviously correct twins of the fast methods: one sample at a time, autograd, whole gradients, nothing cut.

They share the chat template's rendering with the package, and no arithmetic.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from eval.chat import ChatFormat, Conversation


def trained_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    root = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {n: p for n, p in root.named_parameters() if p.requires_grad}


def loss(model: Any, conversation: Conversation, tokens: int | None = None, skip_end: bool = False) -> torch.Tensor:
    """Mean cross-entropy of the response's first ``tokens`` tokens (None: all), from all positions' logits."""
    ids = torch.tensor([conversation.ids])
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    start = conversation.prompt_length
    stop = min(conversation.end_of_turn + 1, ids.shape[1]) - skip_end
    if tokens is not None:
        stop = min(stop, start + tokens)
    return cross_entropy(logits[start - 1 : stop - 1], ids[0, start:stop])


def gradients(model: Any, value: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = trained_parameters(model)
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}


def dot(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum(float((a[n].float() * b[n].float()).sum()) for n in a)


def unit_mean(model: Any, losses: Sequence[Any]) -> dict[str, torch.Tensor]:
    """The mean of gradients of unit length; ``losses`` are functions that compute each loss."""
    total: dict[str, torch.Tensor] = {}
    for compute in losses:
        g = gradients(model, compute())
        norm = dot(g, g) ** 0.5
        for n, values in g.items():
            total[n] = total.get(n, 0) + values.float() / (norm * len(losses))
    return total


class BiAnchoring:
    """References from (instruction, response) pairs, then one row of numbers a pair."""

    def __init__(self, model: Any, tokenizer: Any, sets: Sequence[Sequence[tuple[str, str]]], anchor_tokens: int):
        self.model, self.chat = model, ChatFormat(tokenizer)
        self.references = [unit_mean(model, [self.loss_of(pair, anchor_tokens) for pair in pairs]) for pairs in sets]

    def loss_of(self, pair: tuple[str, str], tokens: int | None, max_length: int | None = None) -> Any:
        conversation = self.chat.conversation(*pair, max_length=max_length)
        return lambda: loss(self.model, conversation, tokens)

    def terms(self, pair: tuple[str, str], tokens: int | None, max_length: int | None = None) -> list[float]:
        """Dot products of the normalised gradient with each reference, and the gradient's norm."""
        g = gradients(self.model, self.loss_of(pair, tokens, max_length)())
        norm = dot(g, g) ** 0.5
        return [dot(g, reference) / norm for reference in self.references] + [norm]


class GradSafe:
    """Critical rows and columns from whole float32 gradients, then one score a prompt."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        unsafe: Sequence[str],
        safe: Sequence[str],
        system: str,
        supervise_end: bool,
        gap: float,
    ):
        self.model, self.chat = copy.deepcopy(model).float(), ChatFormat(tokenizer)
        self.system, self.supervise_end = system, supervise_end
        of_unsafe = [self._gradients(p) for p in unsafe]
        of_safe = [self._gradients(p) for p in safe]
        self.critical: dict[tuple[str, int], torch.Tensor] = {}
        self.reference = {n: sum(g[n] for g in of_unsafe) / len(of_unsafe) for n in of_unsafe[0]}
        for name, reference in self.reference.items():
            for dim in (1, 0):  # 1: rows, 0: columns
                means = [
                    torch.stack([cosine_similarity(g[name], reference, dim=dim).nan_to_num() for g in group]).mean(0)
                    for group in (of_unsafe, of_safe)
                ]
                self.critical[name, dim] = means[0] - means[1] > gap
        self.model = model  # samples are scored in the model's own precision

    def _gradients(self, prompt: str) -> dict[str, torch.Tensor]:
        conversation = self.chat.conversation(prompt, "Sure", system=self.system)
        found = gradients(self.model, loss(self.model, conversation, skip_end=not self.supervise_end))
        return {n: g.float() for n, g in found.items() if g.dim() == 2 and ("mlp" in n or "self" in n)}

    def score(self, prompt: str) -> float:
        found = self._gradients(prompt)
        cosines = []
        for (name, dim), critical in self.critical.items():
            a, b = (found[name], self.reference[name]) if dim == 1 else (found[name].T, self.reference[name].T)
            cosines.append(cosine_similarity(a[critical], b[critical], dim=1).nan_to_num())
        return float(torch.cat(cosines).double().mean())
