"""The contract every method keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from baselines.records import Sample, Scores
from eval.errors import KeelBenchError, UnknownNameError
from eval.generation import Steering


class Parts(Protocol):
    """Where a long scoring puts the rows it has computed, and finds those of an attempt that was stopped."""

    def find(self, start: int, count: int) -> Any | None:
        """The rows of samples start..start+count-1, a tensor [count, ...]; None where they are not there."""
        ...

    def keep(self, start: int, rows: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How a method's passes over the data are run; none of it changes a score beyond rounding."""

    tokens_per_batch: int = 4096  # a batch's tokens, padding included
    max_length: int = 2048  # tokens of a conversation; longer ones are truncated (eval.chat), counted and reported
    on_progress: Callable[[int], None] = lambda done: None  # told how many samples were just finished
    parts: Parts | None = None  # of a per-sample method in one process


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods: frozen keyword-only dataclasses whose fields are the options of ``conf/method/<name>.yaml``.

    ``fine_tunes``: False for the un-tuned model. ``scores``: whether ``score`` exists; where it does not, selection is
    left out and all samples are used. ``uses_model`` and ``uses_seed`` say what the scores depend on, so that they are
    computed once for all seeds, or without loading a model. ``per_sample``: whether a sample's score is the same
    whichever others are scored with it, so that a data set can be scored in parts, or by several processes at once
    (``baselines.distributed``).
    """

    name: ClassVar[str]
    fine_tunes: ClassVar[bool] = True
    scores: ClassVar[bool] = True
    uses_model: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = False
    per_sample: ClassVar[bool] = True
    intervenes: ClassVar[bool] = False  # ``intervene`` changes the fine-tuned model before it answers
    version: ClassVar[str] = "1"  # changes whenever a score could

    def score(
        self, model: Any, tokenizer: Any, samples: Sequence[Sample], *, seed: int = 0, engine: Engine = Engine()
    ) -> Scores:
        """Score ``samples``; higher = more safety-degrading."""
        raise KeelBenchError(f"method {self.name!r} does not score samples")

    @property
    def second_system(self) -> str | None:
        """The system turn of a second pass at every step of an answer; None = there is no second pass."""
        return None

    def intervene(self, model: Any, tokenizer: Any, *, engine: Engine = Engine()) -> Steering | None:
        """Change ``model`` (with its adapter) in place before it answers; or return what changes the logits of each
        batch as it is answered; or both."""
        raise KeelBenchError(f"method {self.name!r} does not intervene")

    def calibration(self) -> dict[str, Any] | None:
        """What must be measured on the model before scoring, as options of ``calibrate``; None = nothing."""
        return None

    def calibrate(self, model: Any, tokenizer: Any, *, engine: Engine = Engine()) -> dict[str, Any]:
        """Measure it: JSON values, one stage for all data sets."""
        raise KeelBenchError(f"method {self.name!r} has nothing to calibrate")

    def calibrated(self, measured: dict[str, Any]) -> "Method":
        """This method with what ``calibrate`` measured."""
        return self

    def resumable_in(self, folder: str) -> "Method":
        """This method with a ``folder`` from which an interrupted ``score`` goes on; itself where it cannot."""
        return self


def build_method(cls: type, options: dict[str, Any]) -> Any:
    """``cls`` with ``options``.

    Raises:
        UnknownNameError: an option the method does not read.
    """
    known = {f.name for f in fields(cls)}
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of method {cls.name!r}:", option, known or {"(none)"})  # type: ignore[attr-defined]
    return cls(**options)
