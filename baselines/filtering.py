"""Methods on rows in memory: for ``datasets.Dataset.map`` and ``.filter``, and as a callback while a model is trained.

>>> scorer = RowScorer(get_method("larf")(layer=24), model, tokenizer)  # doctest: +SKIP
>>> scored = dataset.map(scorer, batched=True, batch_size=256)          # adds the column safety_score
>>> safe = dataset.filter(scorer.below(0.02), batched=True)
>>> parts = scorer.split(dataset, keep=0.8)                             # {"kept": ..., "dropped": ...}
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from transformers import TrainerCallback

from baselines.method import Engine, Method
from baselines.records import Sample, Scores
from baselines.samples import PARSERS, detect_format
from eval.errors import CapacityError, DataError, KeelBenchError, UnknownNameError
from eval.records import content_id

Batch = Mapping[str, Sequence[Any]]


class RowScorer:
    """A method, a model and a tokenizer as one function of rows; a higher score is more safety-degrading.

    Called with a batch of ``datasets`` (column -> list of b values) it returns ``{column: [b floats]}``. The scale is
    the method's: for LARF a difference of cosines in [-2, 2], for representation matching a cosine in [-1, 1], for
    GradSafe a mean cosine in [-1, 1], for Bi-Anchoring a sum of three dot products without bounds.

    Args:
        method: calibrated (LARF: a number as its layer).
        model: a transformers causal language model in evaluation mode, adapters or not.
        format: of the rows: alpaca, dolly, messages, prompt_completion, or auto: told by each batch's first row.
        column: name of the new column.
    """

    def __init__(
        self,
        method: Method,
        model: Any,
        tokenizer: Any,
        *,
        format: str = "auto",
        column: str = "safety_score",
        seed: int = 0,
        engine: Engine = Engine(),
    ):
        if format != "auto" and format not in PARSERS:
            raise UnknownNameError("data format", format, ["auto", *PARSERS])
        self.method, self.model, self.tokenizer = method, model, tokenizer
        self.format, self.column, self.seed, self.engine = format, column, seed, engine

    def __call__(self, batch: Batch) -> dict[str, list[float]]:
        """
        Raises:
            DataError: a row that cannot be scored, by its number in the batch from 1.
            KeelBenchError: a method whose scores depend on all rows (``split`` can use it), or the method's own.
        """
        if not self.method.per_sample:
            raise KeelBenchError(f"{self.method.name} scores a data set as a whole, not batch by batch; use split()")
        names = list(batch)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        return {self.column: self._score(self._samples(rows)).score.tolist()}

    def below(self, threshold: float) -> "Below":
        """A predicate for ``Dataset.filter(..., batched=True)``: rows whose score is at most ``threshold`` stay."""
        return Below(self, threshold)

    def scores(self, dataset: Any) -> Scores:
        """The scores of all n rows, in order: score float64 [n], components [n] each."""
        return self._score(self._samples(list(dataset)))

    def split(self, dataset: Any, *, keep: float | None = None, drop: int | None = None) -> dict[str, Any]:
        """The rows of a ``datasets.Dataset`` that stay and those that go, both in order, all columns kept.

        Args:
            keep: the share that stays, between 0 and 1; or
            drop: the number of rows that go. Ties are broken by the rows' ids.

        Raises:
            KeelBenchError: both or neither is given.
            CapacityError: nothing would stay.
        """
        if (keep is None) == (drop is None):
            raise KeelBenchError("split: give keep (a share) or drop (a number of rows)")
        scores = self.scores(dataset)
        n = len(scores.ids)
        k = drop if drop is not None else n - round((keep or 0.0) * n)
        if not 0 <= k < n:
            raise CapacityError(f"split: dropping {k} of {n} rows leaves nothing to keep")
        goes = scores.ranks() <= k
        return {"kept": dataset.select(np.flatnonzero(~goes)), "dropped": dataset.select(np.flatnonzero(goes))}

    def _samples(self, rows: Sequence[dict[str, Any]]) -> list[Sample]:
        samples: list[Sample] = []
        seen: dict[str, int] = {}
        format = self.format
        for number, row in enumerate(rows, start=1):
            # Dataset columns are shared: a row of mixed data has the fields it lacks as None.
            row = {k: v for k, v in row.items() if v is not None}
            format = detect_format("rows", number, row) if format == "auto" else format
            instruction, given, response, category = PARSERS[format]("rows", number, row)
            for field, text in (("instruction", instruction), ("response", response)):
                if not text.strip():
                    raise DataError("rows", f"empty {field}; filter such rows out first", number)
            identity = content_id(instruction, given, response)
            seen[identity] = seen.get(identity, 0) + 1
            if seen[identity] > 1:
                identity = content_id(identity, str(seen[identity]))
            samples.append(Sample(identity, instruction, response, given, "", category))
        return samples

    def _score(self, samples: Sequence[Sample]) -> Scores:
        return self.method.score(self.model, self.tokenizer, samples, seed=self.seed, engine=self.engine)

    def __reduce__(self) -> tuple[Any, ...]:
        # `datasets` pickles functions to know whether it has a result already. The model itself would take gigabytes;
        # what it is known by is enough, and a copy in another process is refused.
        return _refuse, (self.fingerprint(),)

    def fingerprint(self) -> str:
        """What the scores depend on, as 20 hex digits: method and options, the template, and the model's parameters by
        their sums and sums of magnitudes (float64)."""
        digest = hashlib.sha256()
        about = {**asdict(self.method), "name": self.method.name, "version": self.method.version}
        template = str(getattr(self.tokenizer, "chat_template", ""))
        shape = [self.format, self.column, self.seed, self.engine.max_length, template]
        digest.update(json.dumps([about, shape], sort_keys=True, default=str).encode())
        if self.method.uses_model:
            for name, parameter in self.model.named_parameters():
                values = parameter.detach().double()
                digest.update(
                    f"{name} {tuple(values.shape)} {values.sum().item()!r} {values.abs().sum().item()!r}".encode()
                )
        return digest.hexdigest()[:20]


class Below:
    """``scorer.below(threshold)``."""

    def __init__(self, scorer: RowScorer, threshold: float):
        self.scorer, self.threshold = scorer, threshold

    def __call__(self, batch: Batch) -> list[bool]:
        (scores,) = self.scorer(batch).values()
        return [score <= self.threshold for score in scores]


def _refuse(fingerprint: str) -> None:
    raise KeelBenchError(f"a RowScorer ({fingerprint}) holds a model and stays in its process: use num_proc=1")


class ScoreMonitor(TrainerCallback):
    """Scores fixed rows again while a model is trained, for transformers' Trainer and trl's.

    How a row is scored moves with the model: compare the sets with each other at one step, or one set's course, not a
    score with a threshold found before. Each measurement is ``{"step": ..., "<name>": mean score, ...}`` in
    ``history``, and stands in ``trainer.state.log_history`` as ``purify/<name>``.

    Args:
        method: one that reads the model without training it: larf (with a number as its layer),
            representation_matching, or a gradient method on a model without adapters.
        rows: by name, the samples that are scored.
        every: optimiser steps between two measurements; None = before and after training only.
    """

    def __init__(
        self,
        method: Method,
        rows: Mapping[str, Sequence[Sample]],
        *,
        every: int | None = None,
        engine: Engine = Engine(),
    ):
        if not method.per_sample:
            raise KeelBenchError(f"{method.name} scores a data set as a whole; a monitor scores fixed rows")
        self.method, self.rows, self.every, self.engine = method, rows, every, engine
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measure(state, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            self._measure(state, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.history or self.history[-1]["step"] != state.global_step:
            self._measure(state, kwargs)

    def _measure(self, state: Any, given: Mapping[str, Any]) -> None:
        model, tokenizer = given["model"], given["processing_class"]
        held = [(p, p.grad) for p in model.parameters()]
        was_training = model.training
        model.eval()
        try:
            means = {
                name: float(self.method.score(model, tokenizer, samples, engine=self.engine).score.mean())
                for name, samples in self.rows.items()
            }
        finally:
            model.train(was_training)
            for parameter, gradient in held:
                parameter.grad = gradient
        self.history.append({"step": state.global_step, **means})
        state.log_history.append({"step": state.global_step, **{f"purify/{k}": v for k, v in means.items()}})
