"""lm-eval's ``HFLM`` around the loaded model, and around one whose logits are bent by a second system turn."""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from eval.errors import CapacityError
from eval.generation import Steering, dense_output_layer
from eval.utility.harness import system_text

Asked = tuple[tuple[str, str], list[int], list[int]]  # (context, continuation), and the token ids of each


class LoadedLM(HFLM):  # type: ignore[misc]
    """``HFLM``, generating without the copies that a strided view costs; its answers are the same."""

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> Any:
        with dense_output_layer(self.model):
            return super()._model_generate(context, max_length, stop, **options)


class ContrastedLM(LoadedLM):
    """Greedy answers and likelihoods by ``steering.bent(y, y')``: y the logits behind a prompt as lm-eval makes it, y'
    behind the same prompt under ``steering.system``.

    That prompt is what lm-eval makes of the same document under that system instruction: in a chat the system turn with
    the task's description behind it, in plain text the words in front (``system_text``).

    Args:
        system: the run's own system turn, which y is read under; None = none.
    """

    def __init__(self, *args: Any, steering: Steering, system: str | None, **options: Any):
        super().__init__(*args, **options)
        self.steering, self.plain_system = steering, system
        self._second: dict[str, str] = {}  # chats: the plain prompt → the second one
        self._batch: list[str] = []  # the prompts that are being answered

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        plain: str = super().apply_chat_template(chat_history, add_generation_prompt)
        turns = list(chat_history)
        given = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else ""
        described = given.removeprefix(self.plain_system or "")  # the task's own description
        between = "\n\n" if described and not self.plain_system else ""
        system = {"role": "system", "content": self.steering.system + between + described}
        self._second[plain] = super().apply_chat_template([system, *turns], add_generation_prompt)
        return plain

    def second(self, context: str) -> str:
        """The prompt under the second system turn."""
        if self._second:
            return self._second[context]
        return system_text(self.steering.system) + context.removeprefix(system_text(self.plain_system))

    def tok_batch_encode(self, strings: Sequence[str], *args: Any, **options: Any) -> Any:
        self._batch = list(strings)
        return super().tok_batch_encode(list(strings), *args, **options)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> Any:
        prompts = [self.tok_encode(self.second(text)) for text in self._batch]
        steered = self.steering.encoded(prompts, max_length - context.shape[1])
        return super()._model_generate(context, max_length, stop, logits_processor=[steered], **options)

    def _loglikelihood_tokens(
        self, requests: Sequence[Asked], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        # Choices of one token share a pass, as in HFLM: what is read is the context and all but the last token.
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            groups.setdefault((*context, *continuation[:-1]), []).append(i)
        order = sorted(groups, key=len, reverse=True)
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self.batch_size):
            members = [groups[ids] for ids in order[start : start + self.batch_size]]
            longest = [max((requests[i] for i in group), key=lambda asked: len(asked[2])) for group in members]
            plain = self._read([(context, continuation) for _, context, continuation in longest])
            emphasised = self._read([self._second_pair(*texts) for texts, _, _ in longest])
            for group, y, second in zip(members, plain, emphasised, strict=True):
                bent = self.steering.bent(y, second).log_softmax(dim=-1)
                for i in group:
                    found[i] = likelihood(bent, requests[i][2])
        return [found[i] for i in range(len(requests))]

    def _second_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        pair: tuple[list[int], list[int]] = self._encode_pair(self.second(context), continuation)
        return pair

    def _read(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
        """Logits at every token of each pair's continuation, float32 [its length, vocabulary].

        Raises:
            CapacityError: a pair does not fit the model's context; cut from the left it would lose its system turn.
        """
        rows = [(context + continuation)[:-1] for context, continuation in pairs]
        width = max(map(len, rows))
        if width > self.max_length:
            raise CapacityError(f"a prompt of {width} tokens exceeds the model's context of {self.max_length}")
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for number, row in enumerate(rows):  # padding on the right: nothing before it sees it
            ids[number, : len(row)] = torch.tensor(row)
        logits = self._model_call(ids.to(self.device))
        return [
            logits[number, len(row) - len(continuation) : len(row)].float()
            for number, (row, (_, continuation)) in enumerate(zip(rows, pairs, strict=True))
        ]


def likelihood(log_probabilities: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """The summed log-probability of ``continuation`` and whether it is the greedy one.

    Args:
        log_probabilities: [at least its length, vocabulary]; the last rows are the continuation's.
    """
    rows = log_probabilities[-len(continuation) :]
    tokens = torch.tensor(continuation, device=rows.device)
    return float(rows.gather(1, tokens[:, None]).sum()), bool((rows.argmax(dim=-1) == tokens).all())
