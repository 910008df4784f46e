"""Judge models behind any server that speaks OpenAI's protocol: OpenAI itself, vLLM, llama.cpp, Ollama, a gateway."""

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from eval.errors import KeelBenchError, UnknownNameError
from eval.judges.asking import Question, Reply

REACH_SECONDS = 10.0  # a server that does not list its models within this time counts as out of reach


_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}", re.IGNORECASE)


class ServerError(KeelBenchError):
    """A judge's server that is out of reach, refuses the key, or does not serve the model."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A model behind an OpenAI-compatible server, asked for its most likely answer.

    ``key_variable`` names the environment variable with the API key; the key itself is nowhere in a configuration, a
    record or a log.
    """

    url: str  # such as http://localhost:8000/v1
    model: str  # the name it is served under
    key_variable: str | None
    temperature: float | None  # None leaves it out, for models that refuse the setting
    limit_parameter: str  # max_tokens, or max_completion_tokens where a server wants that
    concurrency: int  # requests under way at once
    retries: int  # of a request that failed in passing, with growing pauses
    timeout: float  # seconds a request may take

    def check(self) -> None:
        """
        Raises:
            ServerError: no key, out of reach, key refused, or a model that is not served (with what is).
        """
        import openai

        client = self._client(retries=0, timeout=min(self.timeout, REACH_SECONDS))
        try:
            served = [model.id for model in client.models.list()]
        except openai.NotFoundError:
            return  # it answers, but does not list its models
        except openai.AuthenticationError as error:
            raise ServerError(f"{self.url} refuses the key in {self.key_variable}") from error
        except openai.OpenAIError as error:
            raise ServerError(f"the judge's server {self.url} cannot be reached: {_told(error)}") from error
        if served and self.model not in served:
            raise UnknownNameError(f"model at {self.url}:", self.model, served)

    def answer(
        self,
        questions: Sequence[Question],
        max_new_tokens: int,
        on_reply: Callable[[int], None] = lambda done: None,
        keep: Callable[[Question, Reply], None] = lambda question, reply: None,
    ) -> list[Reply]:
        """One reply a question, in order. A request that the server calls malformed (a text beyond the context, a
        filtered one) gets a reply that says so; whatever would befall every request ends the call. ``keep`` is told
        every reply as it comes, in the thread it comes in.

        Raises:
            ServerError: the key is refused, the model unknown, or the server still fails after all retries.
        """
        client = self._client(retries=self.retries, timeout=self.timeout)
        replies = []
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            waiting = [pool.submit(self._ask, client, question, max_new_tokens, keep) for question in questions]
            try:
                for future in waiting:
                    replies.append(future.result())
                    on_reply(1)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return replies

    def _ask(
        self, client: Any, question: Question, max_new_tokens: int, keep: Callable[[Question, Reply], None]
    ) -> Reply:
        import openai

        options: dict[str, Any] = {"model": self.model, self.limit_parameter: max_new_tokens}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        try:
            if question.turns:
                done = client.chat.completions.create(messages=question.messages(), **options)
                text = done.choices[0].message.content if done.choices else None
            else:
                done = client.completions.create(prompt=question.text, **options)
                text = done.choices[0].text if done.choices else None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Reply("", 0, 0, f"refused by the server: {_told(error)}")
        except openai.AuthenticationError as error:  # whose text may quote a part of the key
            raise ServerError(f"{self.url} refuses the key in {self.key_variable}") from error
        except openai.OpenAIError as error:
            passing = getattr(error, "status_code", 500) in (408, 409, 429) or getattr(error, "status_code", 500) >= 500
            how = f"still failed after {self.retries} retries" if passing else "refused"
            raise ServerError(f"the judge's server {self.url} {how}: {_told(error)}") from error
        except ValueError as error:
            raise ServerError(f"the judge's server {self.url} answers what is no JSON: {_told(error)}") from error
        except (AttributeError, TypeError, IndexError, KeyError) as error:
            raise ServerError(f"the judge's server {self.url} answers in another form: {_told(error)}") from error
        if text is not None and not isinstance(text, str):
            raise ServerError(f"the judge's server {self.url} answers with {type(text).__name__} instead of a text")
        text = (text or "").encode("utf-8", "replace").decode()  # half a surrogate pair, which no file can hold
        reply = Reply(
            text,
            _count(done, "prompt_tokens"),
            _count(done, "completion_tokens"),
            "" if text else f"an empty answer (finish reason: {_finish(done)})",
        )
        keep(question, reply)
        return reply

    def _client(self, retries: int, timeout: float) -> Any:
        import openai

        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"judge.server={self.url!r}: expected a URL such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ServerError("judge.server: a URL without user, password or query; keys belong in the environment")
        key = "none"  # what servers without keys are sent
        if self.key_variable is not None:
            if not _VARIABLE.fullmatch(self.key_variable):  # a key, perhaps: it is not repeated
                raise ServerError("judge.key_variable is the name of an environment variable, never the key itself")
            key = os.environ.get(self.key_variable, "")
            if not key:
                raise ServerError(
                    f"the environment variable {self.key_variable} (judge.key_variable) with the key of {self.url} is "
                    "not set; judge.key_variable=null for a server that wants none"
                )
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=retries, timeout=timeout)


def _count(done: Any, what: str) -> int:
    count = getattr(getattr(done, "usage", None), what, 0)
    return count if isinstance(count, int) else 0


def _finish(done: Any) -> str:
    return str(getattr(done.choices[0], "finish_reason", None)) if done.choices else "no choice"


def _told(error: Exception) -> str:
    """The error's first line, without what a server may have echoed behind it."""
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}{cause}"
