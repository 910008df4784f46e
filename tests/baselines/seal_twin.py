"""SEAL's slow, obviously correct twin: every sequence goes through the model alone, with the logits of all its tokens.

It shares with the engine the chat template's rendering, the order of the data and peft's initial adapters, and no
arithmetic: losses, weights and gradients are written out here and added up by autograd.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from baselines.records import Sample
from baselines.seal.data import epoch_batches
from eval.chat import ChatFormat
from tests.baselines.plain_twins import loss


def train_selector(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    safe: Sequence[Sample],
    *,
    selector: str = "softmax",
    pairing: str = "cycle",
    upper_weight: float = 1.0,
    upper_weight_decay: float = 0.03,
    epochs: int = 3,
    batch_size: int = 64,
    learning_rate: float = 1e-5,
    selector_learning_rate: float = 5e-3,
    rank: int = 16,
    alpha: int = 16,
    seed: int = 0,
) -> torch.Tensor:
    """Logits of ``samples`` in order of their ids, float64 [n]. ``model`` keeps its adapters: give it a copy."""
    chat = ChatFormat(tokenizer)
    data = [chat.conversation(s.prompt, s.response) for s in sorted(samples, key=lambda s: s.id)]
    refusals = [chat.conversation(s.prompt, s.response) for s in safe]

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    adapters = [p for p in model.parameters() if p.requires_grad]
    logits = torch.zeros(len(data), dtype=torch.float64, requires_grad=True)
    model_adam = torch.optim.Adam(adapters, lr=learning_rate, betas=(0.9, 0.95))
    selector_adam = torch.optim.Adam([logits], lr=selector_learning_rate, betas=(0.9, 0.95))

    for epoch in range(epochs):
        w = upper_weight - epoch * upper_weight_decay
        for b, s in epoch_batches(
            len(data), len(refusals), batch_size=batch_size, pairing=pairing, seed=seed, epoch=epoch
        ):
            if selector == "softmax":
                p = len(data) * logits.exp() / logits.exp().sum()
            else:
                p = 2 / (1 + (-logits).exp())
            model_adam.zero_grad()
            selector_adam.zero_grad()
            selector_loss = torch.zeros((), dtype=torch.float64)
            for i in b:
                l_i = loss(model, data[i])
                ((1 - w) * p[i].item() * l_i / len(b)).backward()
                selector_loss = selector_loss + p[i] * l_i.item() / len(b)
            for i in s:
                (w * loss(model, refusals[i]) / len(s)).backward()
            selector_loss.backward()
            torch.nn.utils.clip_grad_norm_(adapters, 1.0)
            model_adam.step()
            selector_adam.step()
    return logits.detach()
