"""What SEAL puts through the model, and in which order."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.losses import supervised_labels
from baselines.records import Sample
from eval.chat import ChatFormat

TEMPLATES = ("chat", "plain")
PAIRINGS = ("cycle", "zip")

_DATA, _SAFE = 0, 1  # streams of the random order

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Encoded:
    """Conversations as token ids with shifted labels (``baselines.losses.supervised_labels``)."""

    ids: list[Tokens]
    labels: list[Tokens]
    truncated: int  # conversations above the maximum length

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, indices: Sequence[int]) -> int:
        """Tokens of these conversations, padding left out."""
        return sum(len(self.ids[i]) for i in indices)


def encode(tokenizer: Any, samples: Sequence[Sample], *, template: str, max_length: int) -> Encoded:
    """Samples as ids and labels: the response's tokens and its end token are supervised.

    The end token of a truncated response is supervised too, as in the published code, which writes it over the last
    token that fits.

    Raises:
        KeelBenchError: the tokenizer has no chat template (``template="chat"``), or ``max_length`` leaves no room.
    """
    chat = ChatFormat(tokenizer if template == "chat" else _with_plain_template(tokenizer))
    ids, labels, truncated = [], [], 0
    for sample in samples:
        conversation = chat.conversation(sample.prompt, sample.response, max_length=max_length)
        tokens, targets = supervised_labels(conversation)
        ids.append(np.asarray(tokens, dtype=np.int32))
        labels.append(np.asarray(targets, dtype=np.int32))
        truncated += conversation.truncated
    return Encoded(ids, labels, truncated)


def _with_plain_template(tokenizer: Any) -> Any:
    """The tokenizer with the published text as its chat template: what it opens every text with, then
    ``Human: <prompt>``, a new line, ``Assistant: <response>`` and the end-of-sequence token.

    The border lies before the space that precedes the response, so that byte-pair tokenizers, which join that space to
    the response's first word, keep the word supervised (the published code counts the space as the prompt's and loses
    it). The published space before the end token is left out.
    """
    plain = copy.copy(tokenizer)
    opening = str(tokenizer.decode(tokenizer("")["input_ids"]))
    plain.chat_template = (
        "{{ " + repr(opening) + " }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ 'Human: ' + message['content'] + '\\nAssistant:' }}{% endif %}{% endfor %}"
    )
    return plain


def epoch_batches(
    n_data: int, n_safe: int, *, batch_size: int, pairing: str, seed: int, epoch: int
) -> list[tuple[list[int], list[int]]]:
    """An epoch's logical batches: ``(indices of fine-tuning data, indices of safe data)``, equally many of both.

    ``cycle``: every fine-tuning sample once, the safe set in a new order each time it is exhausted. ``zip``: as many as
    the shorter of the two has. The last batch may be smaller. Orders are functions of seed and epoch alone, which is
    what makes a resumed run see what the killed one would have seen.
    """
    total = n_data if pairing == "cycle" else min(n_data, n_safe)
    data = _permutation(n_data, seed, epoch, _DATA, 0)[:total]
    stream = _stream(n_safe, seed, epoch)
    safe = [next(stream) for _ in range(total)]
    return [(data[i : i + batch_size], safe[i : i + batch_size]) for i in range(0, total, batch_size)]


def _stream(n: int, seed: int, epoch: int) -> Iterator[int]:
    for lap in count():
        yield from _permutation(n, seed, epoch, _SAFE, lap)


def _permutation(n: int, *key: int) -> list[int]:
    order: list[int] = np.random.default_rng(key).permutation(n).tolist()
    return order
