"""Stage by stage: operations, memory, hours and money. docs/scaling.md derives the formulas and checks them.

Every estimate is arithmetic on named inputs, of a machine that does nothing else. ``between`` is how far off estimates
were where they could be checked (docs/scaling.md).
"""

from dataclasses import dataclass
from typing import Literal

from eval.errors import KeelBenchError, UnknownNameError
from suite.planning.hardware import Hardware
from suite.planning.shapes import ModelShape

ANCHORS = 12_748  # tokens of the embedded anchors, compliances and refusals (SmolLM2's tokenizer)
SAFE_TOKENS = 73  # of an embedded refusal, which SEAL reads one of with every sample
PROMPT_SHARE = 0.35  # of a conversation's tokens: Alpaca and the embedded data, 0.28 to 0.38
GRADSAFE_PROMPT = 60  # tokens of GradSafe's system turn, an instruction and "Sure"
UNSCORED = ("random", "length", "none", "full", "vcl", "system_prompt", "vector_ablation", "self_cd")


@dataclass(frozen=True)
class StageCosts:
    """What one stage takes."""

    stage: str
    flops: float  # operations
    bytes: float  # memory of one device at the peak; above ``Hardware.memory`` it does not fit
    device_hours: float  # of all devices together: GPU-hours
    hours: float  # by the clock
    dollars: float | None  # None = no price was given
    fits: bool
    between: tuple[float, float]  # hours that the clock may say: ``Hardware.spread``

    def __add__(self, other: "StageCosts") -> "StageCosts":
        """One after the other."""
        dollars = None if self.dollars is None or other.dollars is None else self.dollars + other.dollars
        return StageCosts(
            f"{self.stage} + {other.stage}",
            self.flops + other.flops,
            max(self.bytes, other.bytes),
            self.device_hours + other.device_hours,
            self.hours + other.hours,
            dollars,
            self.fits and other.fits,
            (self.between[0] + other.between[0], self.between[1] + other.between[1]),
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Fine-tuning, as its cost sees it."""

    kind: Literal["lora", "qlora", "full"] = "lora"
    epochs: float = 3
    rank: int = 8
    tokens_per_pass: int = 2048
    gradient_checkpointing: bool = False
    sharding: Literal["none", "full"] = "none"  # of weights, gradients and optimiser state over the devices


def estimate(
    shape: ModelShape,
    n_samples: int,
    mean_tokens: float,
    method: str,
    hardware: Hardware,
    *,
    layer: int | None = None,
    epochs: int = 3,
    tokens_per_batch: int = 4096,
) -> StageCosts:
    """Scoring ``n_samples`` conversations of ``mean_tokens`` tokens, templates included.

    Args:
        layer: LARF's, from 0; None = at two fifths of the depth, as published for Llama-3 (13 of 32).
        epochs: SEAL's.

    Raises:
        UnknownNameError: a method that no formula is known for.
    """
    layer = round(0.4 * shape.blocks) if layer is None else layer
    flops, kind = scoring_operations(shape, n_samples, mean_tokens, method, layer=layer, epochs=epochs)
    share = (layer + 1) / shape.blocks if method == "larf" else 1.0
    memory = 2.0 * shape.parameters + _transient(shape, tokens_per_batch)
    if kind != "forward":  # activations are kept for the way back
        memory += share * _activations(shape, tokens_per_batch)
    return _costs(f"scores/{method}", flops, memory, kind, hardware)


def scoring_operations(
    shape: ModelShape, n_samples: int, mean_tokens: float, method: str, *, layer: int = 0, epochs: int = 3
) -> tuple[float, str]:
    """A scoring's operations, and their kind.

    Raises:
        UnknownNameError: a method that no formula is known for.
    """
    tokens = n_samples * mean_tokens
    if method in UNSCORED:
        return 0.0, "forward"
    if method == "larf":
        # Blocks 0..layer, no head; the anchors once.
        return shape.forward(tokens + ANCHORS, mean_tokens, share=(layer + 1) / shape.blocks), "forward"
    if method == "representation_matching":
        return shape.forward(tokens + ANCHORS, mean_tokens), "forward"
    if method == "gradsafe":
        # Prompt and "Sure": forward, and the activations' gradients; critical slices only, a hundredth.
        read = n_samples * float(GRADSAFE_PROMPT)
        return 2 * shape.forward(read, GRADSAFE_PROMPT) + 2 * shape.head(n_samples), "gradients"
    if method == "bi_anchoring":
        # Prompt and ten response tokens: forward, the activations' gradients, one product with the reference.
        length = min(mean_tokens, PROMPT_SHARE * mean_tokens + 10)
        return 3 * shape.forward(n_samples * length, length) + 3 * shape.head(10.0 * n_samples), "gradients"
    if method == "seal":
        # Each epoch reads every sample and a refusal beside it; the way back is the refusal's in the first epoch
        # (w = 1), and both's in later ones.
        safe = n_samples * float(SAFE_TOKENS)
        read, back = epochs * (tokens + safe), epochs * safe + (epochs - 1) * tokens
        supervised = (1 - PROMPT_SHARE) * (read + back)
        return shape.forward(read + back, mean_tokens) + shape.head(supervised), "bilevel"
    raise UnknownNameError("method", method, [*UNSCORED, "larf", "representation_matching", "gradsafe", "bi_anchoring"])


def fine_tuning(
    shape: ModelShape, n_samples: int, mean_tokens: float, hardware: Hardware, recipe: Recipe | None = None
) -> StageCosts:
    """Fine-tuning (or an alignment)."""
    recipe = recipe or Recipe()
    full = recipe.kind == "full"
    tokens = n_samples * mean_tokens * recipe.epochs
    # Forward 1, back through the activations 1, the trained weights' own gradients 1, recomputation 1.
    passes = 2 + full + recipe.gradient_checkpointing
    supervised = (1 - PROMPT_SHARE) * tokens
    flops = passes * shape.forward(tokens, mean_tokens) + (2 + full) * shape.head(supervised)
    pass_tokens = recipe.tokens_per_pass
    kept = 2.0 * shape.hidden * shape.blocks * pass_tokens if recipe.gradient_checkpointing else 0.0
    activations = kept + _activations(shape, pass_tokens) / (shape.blocks if recipe.gradient_checkpointing else 1)
    logits = 3 * 4.0 * shape.vocabulary * (1 - PROMPT_SHARE) * pass_tokens  # float32: themselves, softmax, gradient
    # Trained parameters: float32 weight, gradient and Adam's two moments; where they are whole, the gradient once more
    # (one process's copy, to take back a pass that did not fit; DDP's buckets).
    trained = shape.parameters if full else shape.lora_parameters(recipe.rank)
    state = (16.0 if recipe.sharding == "full" else 20.0) * trained
    if recipe.kind == "qlora":  # 4 bits, and 0.127 of scales (Dettmers et al. 2023, section 3); embeddings stay
        frozen = (4.127 / 8) * shape.block_parameters + 2.0 * (shape.parameters - shape.block_parameters)
    else:
        frozen = 0.0 if full else 2.0 * shape.parameters
    over = hardware.devices if recipe.sharding == "full" else 1
    return _costs(f"tuning/{recipe.kind}", flops, (state + frozen) / over + activations + logits, "training", hardware)


def loading(shape: ModelShape, hardware: Hardware) -> StageCosts:
    """A process that starts and reads the weights, on every device: once a run, and again where a stage needs the
    weights clean (``+`` adds it)."""
    seconds = hardware.startup + 2.0 * shape.parameters / hardware.read
    return _timed("loading", 0.0, 2.0 * shape.parameters, seconds * hardware.devices, hardware)


def generating(
    shape: ModelShape, n_prompts: int, prompt_tokens: float, new_tokens: float, hardware: Hardware
) -> StageCosts:
    """Completions: the prompts' forward pass by operations, the new tokens by what they read or compute."""
    flops = shape.forward(n_prompts * (prompt_tokens + new_tokens), prompt_tokens + new_tokens)
    flops += shape.head(n_prompts * new_tokens)
    at_once = min(hardware.answers_at_once * hardware.devices, max(1, n_prompts))
    cache = shape.kv_bytes(at_once * (prompt_tokens + new_tokens))
    prefill = shape.forward(n_prompts * prompt_tokens, prompt_tokens)
    seconds = prefill / (hardware.efficiency["forward"] * hardware.peak)
    least = shape.decoding_seconds(
        n_prompts, prompt_tokens, new_tokens, at_once, peak=hardware.peak, bandwidth=hardware.bandwidth
    )
    seconds += least / hardware.efficiency["generation"]
    memory = (2.0 * shape.parameters + cache) / hardware.devices
    return _timed("completions", flops, memory, seconds, hardware)


def judging(
    shape: ModelShape, n_answers: int, read_tokens: float, hardware: Hardware, *, reply_tokens: float = 8
) -> StageCosts:
    """A judge model of ``shape`` that reads ``read_tokens`` (template, prompt, answer) and replies shortly; the keyword
    judge costs nothing."""
    costs = generating(shape, n_answers, read_tokens, reply_tokens, hardware)
    return StageCosts("verdicts", *[getattr(costs, f) for f in _FIELDS])


def api_judging(
    n_answers: int, read_tokens: float, reply_tokens: float, *, dollars_in: float, dollars_out: float
) -> float:
    """Dollars of a judge behind an API.

    Args:
        dollars_in, dollars_out: of a million tokens read and written.
    """
    return n_answers * (read_tokens * dollars_in + reply_tokens * dollars_out) / 1e6


def utility(shape: ModelShape, n_questions: int, read_tokens: float, hardware: Hardware) -> StageCosts:
    """A multiple-choice task: one forward pass a choice, ``read_tokens`` each, few-shot examples included. A task that
    generates costs what ``generating`` says."""
    flops = shape.forward(n_questions * read_tokens, read_tokens) + shape.head(n_questions * read_tokens)
    memory = 2.0 * shape.parameters + _transient(shape, 8 * read_tokens) + 4.0 * shape.vocabulary * 8 * read_tokens
    return _costs("utility", flops, memory, "forward", hardware)


def _activations(shape: ModelShape, tokens: float) -> float:
    """Bytes kept for the way back: 34 h a token and block in two-byte precision (Korthikanti et al. 2022, section 4.1),
    the feed-forward's width counted as it is, without attention's square (it is recomputed or small at these lengths).
    """
    return tokens * shape.blocks * (18.0 * shape.hidden + 8.0 * shape.intermediate)


def _transient(shape: ModelShape, tokens: float) -> float:
    """Bytes of one block's activations, which is all that a forward pass holds."""
    return tokens * (18.0 * shape.hidden + 8.0 * shape.intermediate)


_FIELDS = ("flops", "bytes", "device_hours", "hours", "dollars", "fits", "between")


def _costs(stage: str, flops: float, memory: float, kind: str, hardware: Hardware) -> StageCosts:
    return _timed(stage, flops, memory, flops / (hardware.efficiency[kind] * hardware.peak), hardware)


def _timed(stage: str, flops: float, memory: float, seconds: float, hardware: Hardware) -> StageCosts:
    """
    Args:
        seconds: of one device; several share them evenly, since samples are spread.
    """
    if hardware.devices < 1:
        raise KeelBenchError(f"{hardware.name}: {hardware.devices} devices; at least 1")
    hours = seconds / 3600
    price = hardware.dollars_per_hour
    return StageCosts(
        stage,
        flops,
        memory,
        hours,
        hours / hardware.devices,
        None if price is None else price * hours,
        memory <= hardware.memory,
        (hardware.spread[0] * hours / hardware.devices, hardware.spread[1] * hours / hardware.devices),
    )
