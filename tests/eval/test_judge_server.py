"""Guards the judges' client against what servers do: transient failures, refused keys, unknown models, bad requests."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.errors import KeelBenchError
from eval.judges.asking import Question
from eval.judges.server import Server, ServerError
from eval.records import Completion, Prompt
from tests.eval.judge_settings import judge

CHAT = Question(turns=(("user", "Hello"),))


def chat_reply(text, finish="stop"):
    """A chat completion as the protocol has it."""
    return 200, {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    }  # fmt: skip


def failure(status, message="no"):
    return status, {"error": {"message": message, "type": "x", "param": None, "code": None}}


class Scripted:
    """A local HTTP server. ``replies`` are given in turn, the last one for ever; ``seen`` is what it was sent."""

    def __init__(self):
        self.replies = [chat_reply("fine")]
        self.models = (200, {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "o"}]})
        self.seen = []
        self.under_way = self.most = 0
        self.gate = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send(*outer.models)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.gate:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    outer.seen.append((self.path, headers, body))
                    reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                    outer.under_way += 1
                    outer.most = max(outer.most, outer.under_way)
                reply = reply(body) if callable(reply) else reply
                with outer.gate:
                    outer.under_way -= 1
                self.send(*reply)

            def send(self, status, payload):
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json" if data[:1] in b"{[" else "text/html")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def client(self, **changes):
        settings = {
            "url": self.url, "model": "m", "key_variable": None, "temperature": 0.0, "limit_parameter": "max_tokens",
            "concurrency": 4, "retries": 2, "timeout": 10.0,
        }  # fmt: skip
        return Server(**{**settings, **changes})


@pytest.fixture
def scripted():
    server = Scripted()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_passing_failure_is_tried_again(scripted):
    scripted.replies = [failure(429, "slow down"), failure(503), chat_reply("#thescore: 4")]
    (reply,) = scripted.client().answer([CHAT], 50)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.error) == ("#thescore: 4", 11, 3, "")
    assert len(scripted.seen) == 3


def test_a_lasting_failure_ends_the_call_and_names_server_and_retries(scripted):
    scripted.replies = [failure(500, "broken")]
    with pytest.raises(ServerError, match=rf"{scripted.url} still failed after 1 retries: .*broken"):
        scripted.client(retries=1).answer([CHAT], 50)
    assert len(scripted.seen) == 2


@pytest.mark.parametrize(
    ("status", "message"), [(401, "refuses the key in None"), (403, "refused: .*not you"), (404, "refused: .*not you")]
)
def test_what_would_befall_every_request_is_not_tried_again(scripted, status, message):
    scripted.replies = [failure(status, "not you")]
    with pytest.raises(ServerError, match=message):
        scripted.client(concurrency=1).answer([CHAT] * 3, 50)
    assert len(scripted.seen) <= 2  # the second may have been under way


def test_one_malformed_request_costs_one_verdict_only(scripted):
    scripted.replies = [
        lambda body: failure(400, "too long") if "long" in body["messages"][0]["content"] else chat_reply("ok")
    ]
    questions = [Question(turns=(("user", text),)) for text in ("short", "long", "short")]
    replies = scripted.client().answer(questions, 50)
    assert [r.text for r in replies] == ["ok", "", "ok"]
    assert "too long" in replies[1].error


def test_what_was_answered_before_a_failure_is_not_asked_again(scripted, tmp_path):
    prompts = [Prompt(f"p{i}", "b", f"Request {i}", "", "refuse") for i in range(5)]
    completions = [Completion(p.id, "Well.", 2, "stop") for p in prompts]
    settings = {"server": scripted.url, "model": "m", "key_variable": None, "retries": 0, "concurrency": 1}
    guard = replace(judge("rubric", **settings), kept=tmp_path / "replies" / "r.jsonl")
    scripted.replies = [chat_reply("#thescore: 5"), chat_reply("#thescore: 1"), failure(500)]
    with pytest.raises(ServerError):
        guard(prompts, completions)
    assert len(guard.kept.read_text().splitlines()) == 2
    with guard.kept.open("a") as handle:
        handle.write('{"question": "cut sh')  # as a crash leaves it
    scripted.seen.clear()
    scripted.replies = [chat_reply("#thescore: 2")]
    done = []
    verdicts = guard(prompts, completions, done.append)
    assert [v.score for v in verdicts] == [5, 1, 2, 2, 2]
    assert len(scripted.seen) == 3
    assert sum(done) == 5
    assert verdicts.usage.requests == 5
    scripted.seen.clear()
    assert guard(prompts, completions) == verdicts
    assert scripted.seen == []
    scripted.replies = [chat_reply(None, "content_filter")]
    unanswered = [replace(completions[0], text="Other.")]
    assert guard(prompts[:1], unanswered)[0].label == "unparsed"
    scripted.replies = [chat_reply("#thescore: 3")]
    assert guard(prompts[:1], unanswered)[0].score == 3  # an empty answer is no answer to keep


def test_an_empty_answer_says_why(scripted):
    scripted.replies = [chat_reply(None, "content_filter")]
    (reply,) = scripted.client().answer([CHAT], 50)
    assert reply.text == ""
    assert "content_filter" in reply.error


def test_replies_come_in_the_questions_order_and_no_more_than_allowed_are_under_way(scripted):
    import time

    def slow_first(body):
        text = body["messages"][0]["content"]
        time.sleep(0.15 if text == "0" else 0.02)
        return chat_reply(f"answer {text}")

    scripted.replies = [slow_first]
    done = []
    replies = scripted.client(concurrency=3).answer(
        [Question(turns=(("user", str(i)),)) for i in range(9)], 50, on_reply=done.append
    )
    assert [r.text for r in replies] == [f"answer {i}" for i in range(9)]
    assert sum(done) == 9
    assert 1 < scripted.most <= 3


def test_what_is_sent(scripted, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    scripted.client(key_variable="MY_KEY").answer([CHAT], 50)
    path, headers, body = scripted.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer sk-secret"
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50, "temperature": 0.0
    }  # fmt: skip
    scripted.client(temperature=None, limit_parameter="max_completion_tokens").answer([CHAT], 50)
    assert set(scripted.seen[1][2]) == {"model", "messages", "max_completion_tokens"}
    choice = {"index": 0, "text": " yes", "finish_reason": "stop", "logprobs": None}
    scripted.replies = [
        (200, {"id": "t", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})
    ]
    (reply,) = scripted.client().answer([Question(text="[INST] x [/INST]")], 4)
    path, _, body = scripted.seen[2]
    assert (path, body["prompt"], reply.text, reply.prompt_tokens) == ("/v1/completions", "[INST] x [/INST]", " yes", 0)


def test_a_server_is_checked_before_anything_is_asked(scripted, monkeypatch):
    scripted.client().check()
    with pytest.raises(KeelBenchError, match=r"unknown model at .* 'n'.* Known: m"):
        scripted.client(model="n").check()
    scripted.models = failure(401)
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with pytest.raises(ServerError, match="refuses the key in MY_KEY") as caught:
        scripted.client(key_variable="MY_KEY").check()
    assert "sk-secret" not in str(caught.value)
    scripted.models = failure(404)  # a gateway that lists no models
    scripted.client(model="n").check()
    assert scripted.seen == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "http://127.0.0.1:9/v1"}, "cannot be reached"),
        ({"url": "localhost:8000"}, "expected a URL"),
        ({"url": "http://user:word@localhost/v1"}, "without user, password"),
        ({"key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY .* is not set"),
    ],
)
def test_what_is_wrong_with_a_server_is_told(scripted, monkeypatch, changes, message):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ServerError, match=message):
        scripted.client(**changes).check()


def test_a_server_that_is_too_slow_is_tried_again_and_then_named(scripted):
    import time

    def slow(body):
        time.sleep(0.6)
        return chat_reply("late")

    scripted.replies = [slow, chat_reply("in time")]
    (reply,) = scripted.client(timeout=0.3, retries=1).answer([CHAT], 50)
    assert reply.text == "in time"
    scripted.replies = [slow]
    with pytest.raises(ServerError, match=rf"{scripted.url} still failed after 1 retries: APITimeoutError"):
        scripted.client(timeout=0.3, retries=1).answer([CHAT], 50)


GARBAGE = [
    b"<html>Bad gateway</html>", b"", b"{", b"[1, 2]", b"{}", b'{"choices": null}', b'{"choices": [{}]}',
    b'{"choices": "text"}', b'{"choices": [null]}', b'{"choices": [{"message": "text"}]}', b"\xff\xfe\x00",
    b'{"choices": [{"message": {"content": ["a part"]}}]}', b'{"choices": [{"message": {"content": 5}}]}',
    b'{"choices": [{"message": {"content": "fine"}}], "usage": {"prompt_tokens": "many"}}',
    b'{"choices": [{"message": {"content": "half a pair: \\ud83d"}}]}',
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("question", [CHAT, Question(text="[INST] x [/INST]")])
def test_garbage_is_no_verdict_or_one_clear_message(scripted, garbage, question):
    scripted.replies = [(200, garbage)]
    told = ""
    try:
        (reply,) = scripted.client(retries=0).answer([question], 50)
    except ServerError as error:
        told = str(error)
    if told:
        assert scripted.url in told
    else:
        reply.text.encode()
        assert isinstance(reply.prompt_tokens, int)
        assert reply.error or reply.text
