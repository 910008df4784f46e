"""SEAL: safety-enhanced fine-tuning by bilevel data selection (Shen et al., ICLR 2025, arXiv 2410.07471)."""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from baselines.anchors import EMBEDDED
from baselines.counting import bilevel_flops
from baselines.method import Engine, Method
from baselines.records import FloatArray, Sample, Scores
from baselines.registry import register
from baselines.samples import load_samples
from baselines.seal.data import PAIRINGS, TEMPLATES, Encoded, encode
from baselines.seal.state import load_selector, save_selector
from baselines.seal.training import SELECTORS, Bilevel, Progress, Recipe, fresh_adapters, selector_weights
from eval.errors import DataError, KeelBenchError

log = logging.getLogger(__name__)

CURVE_POINTS = 200  # of the reported loss curve, at most

_ELSEWHERE = {"identity": False}  # a field's metadata: the option says where to work and changes no score


@register("seal")
@dataclass(frozen=True, kw_only=True)
class Seal(Method):
    """How strongly a learnt selector turns a sample down, because fitting it works against the safe data.

    The penalty-based bilevel problem of paper section 3: choose weights p over the fine-tuning data such that a model
    fine-tuned on the weighted data has the lowest loss on safe data. It is solved by alternating single steps
    (``baselines.seal.training`` has the formulas): the adapters descend on ``w * safe + (1 - w) * weighted data``, the
    selector's logits on the weighted data's loss at the adapters so found, which moves weight to the samples that a
    model kept close to the safe data finds easy. Score = -logit.

    Options; the defaults are the published Llama-3 script's, from which the published code's own defaults (given in
    brackets) and the paper's prose differ:
        selector: "softmax" (default: ``n * softmax``; samples compete, and samples outside a batch move as well) or
            "sigmoid" (``2 * sigmoid``; each on its own). Both start at p = 1 (the code's initial logits, 0.1 and
            -0.0001, mean the same weights).
        pairing: "cycle" (default: an epoch is one pass over the fine-tuning data, the safe set is shuffled again
            whenever it is exhausted) or "zip" (the code's: the shorter of the two ends the epoch, so that samples never
            visited keep the highest logits, as if they were the safest; harmless for its safe set of 112,000 rows, but
            not for a few hundred).
        template: "chat" (default: the model's own, in which it was aligned and will be fine-tuned) or "plain" (the
            code's "Human: ... Assistant: ..." text).
        upper_weight, upper_weight_decay: w = upper_weight - upper_weight_decay * epoch, epochs from 0: 1.0, 0.03 [0.9,
            0.1]. With 1.0 the first epoch trains the adapters on safe data alone.
        epochs, batch_size: 3, 64 [2, 128]; a batch is so many samples of each kind. An epoch's last batch may be
            smaller and is a step of its own, where the code carries its gradients over into the next epoch.
        learning_rate, selector_learning_rate: of the adapters and of the logits, 1e-5, 5e-3 [2e-6, 1e-2], constant
            [cosine, constant]. They are meant for an 8B model and thousands of steps: a small model on a few hundred
            rows hardly moves, so give larger ones there.
        max_grad_norm: the adapters' gradient is clipped to it. The logits' is not (the code's bound for them, 10, is
            above what the loss can reach).
        rank, alpha, target_modules: of the LoRA adapters that SEAL attaches and removes again [no adapters; attached
            to all linear layers where asked for]. Phi-3 has ``qkv_proj`` instead of the defaults.
        max_length: tokens of a conversation [512]; None = the engine's, which is 2048 by default, the script's. Longer
            ones are truncated and counted, where the code drops prompts that fill it; every sample keeps its id and
            gets a score.
        safe_data: a file of safe instructions and answers, in any format ``baselines.samples`` knows; None = the
            embedded 220 refusals.
        selector_file: score from a saved selector (``baselines.seal.save_selector``) instead of learning one, perhaps
            learnt on another model; every sample's id must be in it.
        checkpoint_dir, checkpoint_every: folder for the state of an unfinished run, written every so many steps, and
            for the finished selector. A killed run goes on where its last checkpoint stands, on a CPU with the same
            result bit for bit. Files carry a fingerprint of data, model, options and seed, so runs may share a folder.

    Never-visited and rarely visited samples still move: the softmax pushes all logits and Adam normalises the push, so
    the order of batches matters; compare rankings over seeds before trusting one. Orders belong to ids in sorted order,
    so that a reordered file keeps its scores.

    Scores' components: ``logit``, ``weight`` (p at the end) and ``visits``; the logit alone with ``selector_file``.
    Info: loss curve (at most 200 points), steps, tokens, truncated and never-visited samples.
    """

    name: ClassVar[str]
    uses_seed: ClassVar[bool] = True
    per_sample: ClassVar[bool] = False

    selector: str = "softmax"
    pairing: str = "cycle"
    template: str = "chat"
    upper_weight: float = 1.0
    upper_weight_decay: float = 0.03
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 1e-5
    selector_learning_rate: float = 5e-3
    max_grad_norm: float = 1.0
    rank: int = 16
    alpha: int = 16
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    max_length: int | None = None
    safe_data: str | None = None
    selector_file: str | None = None
    checkpoint_dir: str | None = field(default=None, metadata=_ELSEWHERE)
    checkpoint_every: int = field(default=20, metadata=_ELSEWHERE)

    def __post_init__(self) -> None:
        for option, choices in {"selector": SELECTORS, "pairing": PAIRINGS, "template": TEMPLATES}.items():
            if getattr(self, option) not in choices:
                raise KeelBenchError(f"seal: {option}={getattr(self, option)!r}; known are {', '.join(choices)}")
        for option in ("epochs", "batch_size", "rank", "alpha", "checkpoint_every"):
            value = getattr(self, option)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise KeelBenchError(f"seal: {option}={value!r}; a whole number from 1")
        for option in ("learning_rate", "selector_learning_rate", "max_grad_norm"):
            value = getattr(self, option)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise KeelBenchError(f"seal: {option}={value!r}; a positive number")
        last = self.upper_weight - self.upper_weight_decay * (self.epochs - 1)
        if not (0 <= self.upper_weight <= 1 and 0 <= last <= 1):
            raise KeelBenchError(
                f"seal: upper_weight={self.upper_weight!r} with upper_weight_decay={self.upper_weight_decay!r} over "
                f"{self.epochs} epochs ends at {last:g}; it must stay within 0 and 1"
            )
        object.__setattr__(self, "target_modules", tuple(self.target_modules))

    def score(
        self, model: Any, tokenizer: Any, samples: Sequence[Sample], *, seed: int = 0, engine: Engine = Engine()
    ) -> Scores:
        """
        Raises:
            KeelBenchError: a loss that is not finite (the message names the step), a model with adapters or without
                the target modules, or samples that ``selector_file`` does not have.
            DataError: unusable safe data or selector file.
        """
        if self.selector_file is not None:
            return self._score_from(Path(self.selector_file), samples, engine)
        order = sorted(range(len(samples)), key=lambda i: samples[i].id)
        limit = self.max_length or engine.max_length
        data = encode(tokenizer, [samples[i] for i in order], template=self.template, max_length=limit)
        safe = encode(tokenizer, self.safe_samples(), template=self.template, max_length=limit)
        ids = [samples[i].id for i in order]

        files = None if self.checkpoint_dir is None else Path(self.checkpoint_dir)
        key = "" if files is None else self._fingerprint(model, ids, data, safe, seed)
        checkpoint = None if files is None else files / f"seal-{key}.safetensors"
        shape: dict[str, Any] = {"rank": self.rank, "alpha": self.alpha, "target_modules": self.target_modules}
        with fresh_adapters(model, **shape, seed=seed) as (wrapped, adapters):
            bilevel = Bilevel(wrapped, adapters, data, safe, self.recipe(seed))
            if checkpoint is not None and checkpoint.is_file():
                try:
                    bilevel.restore(checkpoint)
                except DataError as error:
                    log.warning("seal: %s; the selector is learnt from the start", error)
            bilevel.run(
                engine.tokens_per_batch,
                checkpoint=checkpoint,
                checkpoint_every=self.checkpoint_every,
                on_step=_per_sample(engine, len(samples)),
            )
            flops = bilevel_flops(wrapped, *bilevel.visits())
        logits = bilevel.logits.detach()
        if files is not None and checkpoint is not None:
            save_selector(files / f"selector-{key}.safetensors", ids, logits.numpy())
            checkpoint.unlink()
        return self._scores(samples, order, logits, bilevel.progress, data, safe, flops)

    def resumable_in(self, folder: str) -> "Seal":
        return self if self.checkpoint_dir is not None else replace(self, checkpoint_dir=folder)

    def safe_samples(self) -> list[Sample]:
        """The upper level's data."""
        path = EMBEDDED / "alignment_refusals.jsonl" if self.safe_data is None else Path(self.safe_data)
        return load_samples(path, source="safe").samples

    def recipe(self, seed: int) -> Recipe:
        return Recipe(
            selector=self.selector,
            pairing=self.pairing,
            upper_weight=self.upper_weight,
            upper_weight_decay=self.upper_weight_decay,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            selector_learning_rate=self.selector_learning_rate,
            max_grad_norm=self.max_grad_norm,
            seed=seed,
        )

    def _scores(
        self,
        samples: Sequence[Sample],
        order: Sequence[int],
        logits: torch.Tensor,
        progress: Progress,
        data: Encoded,
        safe: Encoded,
        flops: float,
    ) -> Scores:
        def in_order(values: FloatArray) -> FloatArray:
            placed = np.empty(len(order))
            placed[list(order)] = values
            return placed

        logit = in_order(logits.numpy())
        return Scores(
            tuple(s.id for s in samples),
            -logit,
            {
                "logit": logit,
                "weight": in_order(selector_weights(logits, self.selector).numpy()),
                "visits": in_order(progress.visits),
            },
            {
                "steps": len(progress.curve),
                "tokens": progress.tokens,
                "flops": flops,
                "truncated": data.truncated,
                "safe_samples": len(safe),
                "safe_truncated": safe.truncated,
                "never_visited": int((progress.visits == 0).sum()),
                "curve": downsampled(progress.curve, CURVE_POINTS),
            },
        )

    def _score_from(self, path: Path, samples: Sequence[Sample], engine: Engine) -> Scores:
        known = load_selector(path)
        missing = [s.id for s in samples if s.id not in known]
        if missing:
            raise KeelBenchError(
                f"seal: the selector {path} has no logit for {len(missing)} of {len(samples)} samples, the first "
                f"{', '.join(missing[:3])}; it was learnt on other data"
            )
        logit = np.array([known[s.id] for s in samples])
        engine.on_progress(len(samples))
        unused = len(known) - len(samples)
        return Scores(tuple(s.id for s in samples), -logit, {"logit": logit}, {"selector_ids_unused": unused})

    def _fingerprint(self, model: Any, ids: Sequence[str], data: Encoded, safe: Encoded, seed: int) -> str:
        """Hash of all that decides the logits: options, seed, ids, tokens, and a probe of every weight."""
        digest = hashlib.sha256()
        options = {k: v for k, v in asdict(self).items() if k not in ("checkpoint_dir", "checkpoint_every")}
        digest.update(json.dumps([self.version, options, seed, list(ids)], sort_keys=True).encode())
        for encoded in (data, safe):
            for tokens in (*encoded.ids, *encoded.labels):
                digest.update(len(tokens).to_bytes(4, "little") + tokens.tobytes())
        for name, parameter in model.named_parameters():
            probe = parameter.detach().flatten()[:64].float().cpu().numpy()
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + probe.tobytes())
        return digest.hexdigest()[:16]


def downsampled(curve: Sequence[dict[str, float]], points: int) -> list[dict[str, float]]:
    """At most ``points`` of a curve, evenly spaced, with its first and last one; ``step`` counts from 1."""
    numbered = [{"step": i, **point} for i, point in enumerate(curve, start=1)]
    if len(numbered) <= points:
        return numbered
    return [numbered[i] for i in np.linspace(0, len(numbered) - 1, points).round().astype(int)]


def _per_sample(engine: Engine, n: int) -> Any:
    """Visits of all epochs as progress over ``n`` samples."""
    told = 0

    def on_step(done: int, total: int) -> None:
        nonlocal told
        reached = n * done // total
        if reached > told:
            engine.on_progress(reached - told)
            told = reached

    return on_step
