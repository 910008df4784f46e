"""What all judges have in common that ask a language model: who is asked, how, and at what price."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from eval.errors import KeelBenchError
from eval.judges.asking import Question, Reply
from eval.judges.kept import KeptReplies
from eval.judges.local import LocalModel, check_engine
from eval.judges.server import Server
from eval.records import Completion, Expected, Label, Prompt, Usage, Verdict, Verdicts


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a reply says of one completion."""

    label: Label
    score: float
    category: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelJudge(ABC):
    """A judge that puts one question a completion to a language model.

    A subclass says what is asked (``question``) and reads the reply (``read``, None where it cannot). The settings are
    those of ``conf/judge``; ``weights`` is the model's folder once it has been found, needed where no server is named,
    and ``kept`` a file of the caller's.
    """

    model: str  # a hub repository or a folder; with a server, the name the model is served under
    revision: str | None
    server: str | None  # URL of an OpenAI-compatible server; None = a model in this process
    key_variable: str | None  # environment variable with the server's API key; None = it wants none
    max_new_tokens: int
    temperature: float | None  # of a server; in this process decoding is always greedy
    limit_parameter: str
    concurrency: int
    retries: int
    timeout: float
    price_input: float | None  # dollars a million prompt tokens
    price_output: float | None  # dollars a million generated tokens
    engine: str  # without a server: transformers or vllm
    dtype: str
    device: str
    tokens_per_batch: int
    weights: Path | None = None
    kept: Path | None = None  # where a server's replies are kept as they come; None = nowhere

    name: ClassVar[str]
    version: ClassVar[str]  # of the question and its reading
    judged: ClassVar[frozenset[Expected]] = frozenset({"refuse"})  # of which prompts the question makes sense
    score_name: ClassVar[str | None] = None  # under which a record keeps the mean score; None for 0 and 1

    @abstractmethod
    def question(self, prompt: Prompt, completion: Completion) -> Question: ...

    @abstractmethod
    def read(self, reply: str) -> Opinion | None: ...

    def prompt_identity(self) -> str:
        """Hash of texts of the question that are read from a file; "" where all of it is in this package."""
        return ""

    def check(self) -> None:
        """Everything that can be found wrong before a model is loaded.

        Raises:
            KeelBenchError: such as a server out of reach.
        """
        if self.concurrency < 1 or self.retries < 0 or self.max_new_tokens < 1:
            raise KeelBenchError("judge: concurrency and max_new_tokens are at least 1, retries at least 0")
        if self.limit_parameter not in ("max_tokens", "max_completion_tokens"):
            raise KeelBenchError(f"judge.limit_parameter={self.limit_parameter!r}: max_tokens or max_completion_tokens")
        self.prompt_identity()
        if self.server is not None:
            self._server.check()
        else:
            check_engine(self.engine)

    @property
    def described(self) -> str:
        """Version and model, for records: never a path or an address."""
        return f"{self.version}, {Path(self.model).name if Path(self.model).is_absolute() else self.model}"

    def identity(self) -> dict[str, Any]:
        """What a verdict depends on beside the judge's name and version, as JSON. The weights of a model in this
        process are the caller's to add."""
        shared = {"max_new_tokens": self.max_new_tokens, "prompt": self.prompt_identity()}
        if self.server is None:
            return {**shared, "through": self.engine, "dtype": self.dtype}
        return {
            **shared,
            "through": "server",
            "server": self.server,
            "model": self.model,
            "temperature": self.temperature,
        }

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        on_reply: Callable[[int], None] = lambda done: None,
    ) -> Verdicts:
        pairs = list(zip(prompts, completions, strict=True))
        asked = [(p, c) for p, c in pairs if p.expected in self.judged]
        questions = [self.question(p, c) for p, c in asked]
        replies = iter(self._replies(questions, on_reply) if questions else [])
        verdicts, given = [], []
        for prompt, completion in pairs:
            if prompt.expected not in self.judged:
                verdicts.append(Verdict(completion.prompt_id, self.name, "not_judged", float("nan"), ""))
                continue
            reply = next(replies)
            given.append(reply)
            verdicts.append(self.verdict(completion, reply))
        return Verdicts(verdicts, self._usage(given))

    def verdict(self, completion: Completion, reply: Reply) -> Verdict:
        """What a reply says of a completion."""
        opinion = None if reply.error else self.read(reply.text)
        raw = reply.text or (f"[{reply.error}]" if reply.error else "")
        if opinion is None:
            return Verdict(completion.prompt_id, self.name, "unparsed", float("nan"), raw)
        return Verdict(completion.prompt_id, self.name, opinion.label, opinion.score, raw, opinion.category)

    def _usage(self, replies: Sequence[Reply]) -> Usage:
        read, written = sum(r.prompt_tokens for r in replies), sum(r.completion_tokens for r in replies)
        dollars = None
        if self.server is not None and self.price_input is not None and self.price_output is not None:
            dollars = (read * self.price_input + written * self.price_output) / 1e6
        return Usage(len(replies), read, written, dollars)

    def _replies(self, questions: Sequence[Question], on_reply: Callable[[int], None]) -> list[Reply]:
        if self.server is None:
            return self._local.answer(questions, self.max_new_tokens, on_reply)
        if self.kept is None:
            return self._server.answer(questions, self.max_new_tokens, on_reply)
        kept = KeptReplies(self.kept)
        found = [kept.get(question) for question in questions]
        missing = [question for question, reply in zip(questions, found, strict=True) if reply is None]
        on_reply(len(questions) - len(missing))
        new = iter(self._server.answer(missing, self.max_new_tokens, on_reply, kept.keep))
        return [next(new) if reply is None else reply for reply in found]

    @property
    def _local(self) -> LocalModel:
        if self.weights is None:
            raise KeelBenchError(f"judge {self.name}: the weights of {self.model} have not been looked for")
        return LocalModel(
            folder=self.weights,
            engine=self.engine,
            dtype=self.dtype,
            device=self.device,
            tokens_per_batch=self.tokens_per_batch,
        )

    @property
    def _server(self) -> Server:
        assert self.server is not None
        return Server(
            url=self.server,
            model=self.model,
            key_variable=self.key_variable,
            temperature=self.temperature,
            limit_parameter=self.limit_parameter,
            concurrency=self.concurrency,
            retries=self.retries,
            timeout=self.timeout,
        )
