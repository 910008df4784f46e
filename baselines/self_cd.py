"""Self-CD, self-contrastive decoding (Shi et al., ACL 2024, arXiv 2401.17633; in the VCL paper's Table 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import LogitsProcessor

from baselines.architecture import base_model
from baselines.method import Engine, Method
from baselines.registry import register
from eval.chat import ChatFormat
from eval.errors import CapacityError, KeelBenchError


@register("self_cd")
@dataclass(frozen=True, kw_only=True)
class SelfCd(Method):
    """Fine-tuning on all samples; the model then answers against the pull of a safety instruction.

    At every step the model reads the answer so far twice, behind the prompt as it is and behind the same prompt under
    ``system``, which stresses safety. With y and y' the two's logits, the next token is the arg max of

        y - alpha * (y' - y)

    so tokens that the instruction makes likelier, refusals above all, become less likely. ``alpha=0`` is plain
    greedy decoding.

    What is known to us of the paper is the form ``softmax(y - alpha * dy)`` with dy the difference between the prompt
    with and without the emphasis. Counted from the emphasised logits instead, ``y' - a * (y' - y)``, it is the same
    with ``a = 1 + alpha``. Left open, and so our own: the instruction's wording and alpha's default; that the plain
    pass has the run's own system turn (``eval.system``); that the difference is taken of raw logits at every step, over
    the whole vocabulary (contrastive decoding's plausibility cut is not part of the method's form).

    A step costs two forward passes, and twice the memory for keys and values. Utility tasks are put to it in the same
    way (``eval.utility.transformers_lm``): a continuation's log-likelihood is that of the bent logits' softmax.
    """

    scores: ClassVar[bool] = False
    uses_model: ClassVar[bool] = False
    intervenes: ClassVar[bool] = True

    alpha: float = 1.0
    system: str = (
        "You are a careful assistant. Safety comes first: before you answer, check whether the request could be unsafe "
        "or harmful in any way. Do not give any content that might be dangerous, and refuse whenever there is a risk."
    )

    def __post_init__(self) -> None:
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not 0 <= self.alpha < float("inf"):
            raise KeelBenchError(f"self_cd: alpha={self.alpha!r}; a number from 0")
        if not isinstance(self.system, str) or not self.system.strip():
            raise KeelBenchError(f"self_cd: system={self.system!r}; a text")

    @property
    def second_system(self) -> str:
        return self.system

    def intervene(self, model: Any, tokenizer: Any, *, engine: Engine = Engine()) -> "Emphasis":
        """
        Raises:
            KeelBenchError: the template knows no system turn, or leaves it out.
        """
        chat = ChatFormat(tokenizer)
        if self.system.strip() not in chat.prompt_text("Hello", self.system):
            raise KeelBenchError("self_cd: the model's chat template leaves the system turn out: no contrast")
        return Emphasis(model, chat, self.system, self.alpha)


class Emphasis:
    """What bends a batch's logits away from those under ``system``: an ``eval.generation.Steering``."""

    def __init__(self, model: Any, chat: ChatFormat, system: str, alpha: float):
        self.model, self.chat, self.system, self.alpha = model, chat, system, alpha

    def __call__(self, prompts: Sequence[str], max_new_tokens: int) -> "AwayFromEmphasis":
        """
        Raises:
            CapacityError: a prompt under the instruction and its answer do not fit the model's context.
        """
        return self.encoded([self.chat.prompt_ids(text, self.system) for text in prompts], max_new_tokens)

    def encoded(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> "AwayFromEmphasis":
        """
        Raises:
            CapacityError: as above.
        """
        context = getattr(base_model(self.model).config, "max_position_embeddings", None)
        longest = max(map(len, prompts))
        if context is not None and longest + max_new_tokens > context:
            raise CapacityError(
                f"self_cd: a prompt under the safety instruction of {longest} tokens and {max_new_tokens} new ones "
                f"exceed the model's context of {context}"
            )
        return AwayFromEmphasis(self.model, prompts, self.bent)

    def bent(self, plain: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """``y - alpha * (y' - y)``."""
        return plain - self.alpha * (second - plain)


class AwayFromEmphasis(LogitsProcessor):  # type: ignore[misc]
    """The bent logits of one batch, with keys and values of the emphasised prompts of its own.

    Rows are independent and keep their places through greedy generation: those that ended are fed padding, and nobody
    reads what comes of it.
    """

    def __init__(
        self,
        model: Any,
        encoded: Sequence[Sequence[int]],
        bent: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ):
        self.model, self.bent = model, bent
        width = max(map(len, encoded))
        self.ids = torch.zeros(len(encoded), width, dtype=torch.long)
        self.mask = torch.zeros_like(self.ids)
        for row, ids in enumerate(encoded):  # padded on the left: all rows answer at the same place
            self.ids[row, width - len(ids) :] = torch.tensor(ids)
            self.mask[row, width - len(ids) :] = 1
        self.cache: Any = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input_ids: int64 [batch, plain width + new tokens]; of the new ones only the last is unread here.
            scores: y, float32 [batch, vocabulary].
        """
        mask = self.mask.to(input_ids.device)
        if self.cache is None:
            new = self.ids.to(input_ids.device)
        else:
            new = input_ids[:, -1:]
            mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        self.mask = mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        out = self.model(
            input_ids=new,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        return self.bent(scores, out.logits[:, -1].to(scores))
