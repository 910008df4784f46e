"""Utility tasks under a second system turn: the prompts against lm-eval's own, the figures against plain twins."""

import json
import shutil
from functools import cache

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `utility`)")
if shutil.which("bwrap") is None:
    pytest.skip("bubblewrap is not installed", allow_module_level=True)

from baselines.self_cd import SelfCd
from eval.errors import CapacityError
from eval.sandbox import Sandbox
from eval.utility.harness import run_task, system_text
from eval.utility.language_models import through_transformers
from eval.utility.tasks import build_task
from eval.utility.transformers_lm import ContrastedLM, LoadedLM
from tests.eval.harness_cli import BBH, EXAMPLES

TASKS = {"mmlu": 0, "gsm8k": 0, "humaneval": 0, "pubmedqa": 0, "bbh": 1}  # examples before each question
TERSE = "You are terse."


@pytest.fixture(scope="module")
def task(shared_data, tmp_path_factory):
    """``task(name, chat)``"""
    bbh = tmp_path_factory.mktemp("bbh")
    (bbh / f"{BBH}.json").write_text(json.dumps({"examples": EXAMPLES}))

    @cache
    def made(name, chat):
        return build_task(
            name, local=bbh if name == "bbh" else shared_data / name, fewshot=TASKS[name], chat_template=chat,
            sandbox=Sandbox(), parts={"mmlu": ("anatomy",), "bbh": (BBH,)}.get(name),
        )  # fmt: skip

    return made


class Asked(LoadedLM):
    """Answers nothing; keeps what it is asked."""

    def keep(self, requests):
        self.contexts = [request.args[0] for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        self.keep(requests)
        return [(0.0, False)] * len(requests)

    def generate_until(self, requests, disable_tqdm=False):
        self.keep(requests)
        return [""] * len(requests)


class AskedTwice(Asked, ContrastedLM):
    def keep(self, requests):
        self.contexts = [self.second(request.args[0]) for request in requests]


class Speaking(ContrastedLM):
    """Keeps what it answers."""

    def generate_until(self, requests, disable_tqdm=False):
        self.answers = super().generate_until(requests, disable_tqdm)
        return self.answers


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("system", [None, TERSE])
def test_the_second_prompt_is_lm_evals_own_under_that_system_turn(task, tiny_llama, name, chat, system):
    model, tokenizer = tiny_llama
    method = SelfCd()
    options = {"pretrained": model, "tokenizer": tokenizer, "backend": "causal", "batch_size": 4}
    twice = AskedTwice(steering=method.intervene(model, tokenizer), system=system, **options)
    run_task(task(name, chat), twice, limit=2, chat_template=chat, system=system)
    once = Asked(**options)
    run_task(task(name, chat), once, limit=2, chat_template=chat, system=method.system)
    assert twice.contexts == once.contexts
    assert all(text.count(method.system) == 1 and TERSE not in text for text in twice.contexts)


def measured(task, loaded, name, chat, method=None, system=None, batch_size=4):
    steering = None if method is None else method.intervene(*loaded)
    lm = through_transformers(*loaded, batch_size=batch_size, steering=steering, system=system)
    found = run_task(task(name, chat), lm, limit=1, chat_template=chat, max_new_tokens=6, system=system)
    return [json.loads(row["answer"]) for row in found.samples]


def likelihoods(answers):
    return [float(choice[0]) for answer in answers for choice in answer]


def both_prompts(task, loaded, name, chat, *systems, limit=1):
    """lm-eval's prompts under each of two system turns."""
    model, tokenizer = loaded
    for system in systems:
        asked = Asked(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
        run_task(task(name, chat), asked, limit=limit, chat_template=chat, system=system)
        yield asked.contexts


@pytest.mark.parametrize(("name", "chat"), [("smollm2", True), ("tiny_llama", False)])
def test_likelihoods_are_a_plain_twins_whatever_the_batches(task, request, name, chat):
    model, tokenizer = loaded = request.getfixturevalue(name)
    method = SelfCd(alpha=1.5)
    found = likelihoods(measured(task, loaded, "mmlu", chat, method, TERSE))
    one_by_one = likelihoods(measured(task, loaded, "mmlu", chat, method, TERSE, batch_size=1))
    assert one_by_one == pytest.approx(found, abs=1e-3)
    twin = []
    for n, texts in enumerate(zip(*both_prompts(task, loaded, "mmlu", chat, TERSE, method.system), strict=True)):
        choice, logits = ("" if chat else " ") + "ABCD"[n % 4], []
        for text in texts:
            ids = tokenizer(text + choice)["input_ids"]
            start = len(tokenizer(text.rstrip())["input_ids"])  # lm-eval counts white space before it to the choice
            with torch.no_grad():
                logits.append(model(torch.tensor([ids[:-1]])).logits[0, start - 1 :])
        bent = logits[0] - method.alpha * (logits[1] - logits[0])
        twin.append(float(bent.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None]).sum()))
    assert found == pytest.approx(twin, abs=1e-3)
    plain = likelihoods(measured(task, loaded, "mmlu", chat, None, TERSE))
    assert plain != pytest.approx(twin, abs=1e-2)


@pytest.mark.parametrize(("name", "chat", "questions"), [("smollm2", True, 1), ("tiny_llama", False, 3)])
def test_answers_are_a_plain_twins(task, request, name, chat, questions):
    model, tokenizer = loaded = request.getfixturevalue(name)
    method = SelfCd(alpha=1.5)
    steering = method.intervene(model, tokenizer)
    lm = Speaking(steering=steering, system=None, pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=2)
    run_task(task("gsm8k", chat), lm, limit=questions, chat_template=chat, max_new_tokens=4)
    twin = []
    sides_of = both_prompts(task, loaded, "gsm8k", chat, None, method.system, limit=questions)
    for texts in zip(*sides_of, strict=True):
        sides, new = [tokenizer(text)["input_ids"] for text in texts], []
        with torch.no_grad():
            for _ in range(4):
                y, emphasised = (model(torch.tensor([ids + new])).logits[0, -1] for ids in sides)
                new.append(int((y - method.alpha * (emphasised - y)).argmax()))
        twin.append(tokenizer.decode(new, skip_special_tokens=True).split("Question:")[0])
    assert lm.answers == twin
    assert all(twin)


@pytest.mark.parametrize("name", ["mmlu", "gsm8k"])
def test_without_pull_they_are_the_plain_models(task, smollm2, name):
    plain, bent = (measured(task, smollm2, name, False, method) for method in (None, SelfCd(alpha=0.0)))
    if name == "mmlu":
        assert likelihoods(bent) == pytest.approx(likelihoods(plain), abs=1e-3)
    else:
        assert bent == plain


def test_a_prompt_that_does_not_fit_is_refused_and_not_cut(task, tiny_llama):
    long = SelfCd(system="Take care. " * 400)
    for name in ("mmlu", "gsm8k"):
        with pytest.raises(CapacityError, match="exceed"):
            measured(task, tiny_llama, name, False, long)


def test_a_system_turn_in_plain_text_stands_apart():
    assert system_text(None) == ""
    assert system_text("Be kind. ") == "Be kind.\n\n"
