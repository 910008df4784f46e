"""What each step towards the fine-tuning configuration gains: ``python -m tests.benchmarks.bench_training``.

One optimiser step of SmolLM2 on 8 conversations x 128 tokens, 78 supervised; the fastest of four after the first.
The losses of all rows must agree: faster, not different.
"""

import contextlib
import time
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from baselines.losses import IGNORE, Batch, supervised_forward
from tests.benchmarks.common import print_table, smollm2_folder

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Variant:
    name: str
    dtype: torch.dtype = torch.bfloat16
    attention: str = "sdpa"
    selected: bool = False  # head on supervised positions only
    autocast: bool = False  # bfloat16 autocast instead of peft's float32 copies of the activations


VARIANTS = (
    Variant("float32, sdpa (plain)", torch.float32),
    Variant("bfloat16 weights, float32 adapters"),
    Variant("+ eager attention", attention="eager"),
    Variant("+ head on supervised positions", attention="eager", selected=True),
    Variant("+ autocast (what KeelBench does)", attention="eager", selected=True, autocast=True),
    Variant("same with sdpa", selected=True, autocast=True),
)


def measure(variant: Variant, batch: Batch, steps: int = 5) -> tuple[float, list[float]]:
    """Seconds of the fastest step but the first, and all losses."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(
        smollm2_folder(), dtype=variant.dtype, attn_implementation=variant.attention
    )
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    seconds, losses = [], []
    with disable_input_dtype_casting(model, active=variant.autocast):
        for _ in range(steps):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16) if variant.autocast else contextlib.nullcontext():
                if variant.selected:
                    loss = supervised_forward(model, batch).token_losses().mean()
                else:
                    logits = model(input_ids=batch.ids, use_cache=False).logits.float()
                    loss = cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            seconds.append(time.perf_counter() - start)
            losses.append(float(loss.detach()))
    return min(seconds[1:]), losses


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, 49000, (8, 128), generator=generator)
    labels = torch.roll(ids, -1, 1)
    labels[:, :49] = IGNORE
    labels[:, -1] = IGNORE
    batch = Batch(ids, labels, torch.full((8,), 128))
    rows, plain = [], 0.0
    for variant in VARIANTS:
        seconds, losses = measure(variant, batch)
        plain = plain or seconds
        rows.append(
            [variant.name, f"{seconds:.2f}", f"{ids.numel() / seconds:.0f}", f"{plain / seconds:.2f}",
             " ".join(f"{loss:.2f}" for loss in losses)]
        )  # fmt: skip
    print_table(
        "fine-tuning step, SmolLM2, 8 x 128 tokens", ["configuration", "s/step", "tokens/s", "x plain", "losses"], rows
    )


if __name__ == "__main__":
    main()
