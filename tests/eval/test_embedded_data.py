"""Guards the embedded data: enough of it, varied, without duplicates, refusals that refuse, nothing leaked to tests."""

import functools
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from eval.judges.refusal_keywords import is_incoherent, refusal_phrase

ROOT = Path(__file__).resolve().parents[2]
BASELINES, EVAL = ROOT / "baselines" / "data", ROOT / "eval" / "data"
PROMPTS = {  # file -> the field that holds what a user says
    EVAL / "mini_harmful.jsonl": "prompt",
    EVAL / "mini_overrefusal.jsonl": "prompt",
    BASELINES / "mini_benign.jsonl": "instruction",
    BASELINES / "alignment_refusals.jsonl": "instruction",
    BASELINES / "alignment_helpful.jsonl": "instruction",
    BASELINES / "anchors.jsonl": "instruction",
    BASELINES / "overrefusal_probes.jsonl": "prompt",
}
SELF_HARM_WITHOUT_REFUSAL = 0  # kind answers to self-harm that the keyword judge does not call refusals


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> tuple[str, ...]:
    """Case-folded words without punctuation."""
    return tuple(re.findall(r"\w+", re.sub(r"['’]", "", text.casefold())))


def texts(path: Path) -> list[str]:
    """What a user says in each row; with its input, where it has one."""
    return [f"{row[PROMPTS[path]]} {row.get('input', '')}".strip() for row in rows(path)]


@functools.cache
def word_set(text: str) -> frozenset[str]:
    return frozenset(words(text))


def overlap(a: str, b: str) -> float:
    """Shared words of all words."""
    x, y = word_set(a), word_set(b)
    return len(x & y) / len(x | y)


@pytest.mark.parametrize("path", PROMPTS, ids=lambda p: p.stem)
def test_every_field_is_text_and_every_file_has_the_same_fields_throughout(path):
    found = rows(path)
    assert len({tuple(row) for row in found}) == 1
    for row in found:
        assert all(isinstance(value, str) for value in row.values())
        assert all(value.strip() == value != "" for name, value in row.items() if name != "input"), row


def test_the_benign_set_is_large_and_varied():
    found = rows(BASELINES / "mini_benign.jsonl")
    categories = Counter(row["category"] for row in found)
    assert len(found) >= 400
    assert len(categories) >= 8
    assert min(categories.values()) >= 30
    assert max(categories.values()) <= len(found) / 4
    assert sum(bool(row["input"]) for row in found) >= 80
    lengths = sorted(len(row["output"]) for row in found)
    assert lengths[len(lengths) // 10] < 120
    assert lengths[-len(lengths) // 10] > 500
    assert len({row["output"] for row in found if len(row["output"]) > 40}) == sum(
        len(row["output"]) > 40 for row in found
    )
    assert not any(is_incoherent(row["output"]) for row in found)


@pytest.mark.parametrize("name", ["mini_harmful", "mini_overrefusal"])
def test_the_evaluation_sets_have_80_prompts_in_8_even_categories(name):
    categories = Counter(row["category"] for row in rows(EVAL / f"{name}.jsonl"))
    assert len(categories) == 8
    assert set(categories.values()) == {10}


def test_the_scorers_reference_data_has_its_stated_size():
    probes, anchors = rows(BASELINES / "overrefusal_probes.jsonl"), rows(BASELINES / "anchors.jsonl")
    assert len(probes) == 60
    assert len({row["category"] for row in probes}) == 8
    assert len(anchors) == 50
    assert set(Counter(row["category"] for row in anchors).values()) == {5}


def test_the_alignment_data_has_enough_of_both_kinds():
    refusals = rows(BASELINES / "alignment_refusals.jsonl")
    helpful = Counter(row["category"] for row in rows(BASELINES / "alignment_helpful.jsonl"))
    assert len(refusals) >= 200
    assert len({row["category"] for row in refusals}) >= 8
    assert helpful["helpful_general"] >= 100
    assert helpful["helpful_borderline"] >= 50
    assert len({row["output"] for row in refusals}) == len(refusals)


def test_every_alignment_refusal_is_recognised():
    missed = [row for row in rows(BASELINES / "alignment_refusals.jsonl") if refusal_phrase(row["output"]) is None]
    assert {row["category"] for row in missed} <= {"self_harm"}
    assert len(missed) == SELF_HARM_WITHOUT_REFUSAL


def test_no_helpful_answer_counts_as_a_refusal():
    assert [row for row in rows(BASELINES / "alignment_helpful.jsonl") if refusal_phrase(row["output"])] == []
    # Two of the benign answers quote somebody who says "I can't".
    outside_quotes = [re.sub(r'"[^"]*"', "", row["output"]) for row in rows(BASELINES / "mini_benign.jsonl")]
    assert [text for text in outside_quotes if refusal_phrase(text)] == []
    assert sum(refusal_phrase(row["output"]) is not None for row in rows(BASELINES / "mini_benign.jsonl")) == 2


def test_an_anchor_is_one_request_with_a_refusal_and_a_compliance():
    for row in rows(BASELINES / "anchors.jsonl"):
        assert refusal_phrase(row["refusal"]) is not None, row
        assert refusal_phrase(row["compliance"]) is None, row
        assert not is_incoherent(row["compliance"]), row


@pytest.mark.parametrize("path", PROMPTS, ids=lambda p: p.stem)
def test_no_prompt_stands_twice_in_a_file(path):
    counts = Counter(words(text) for text in texts(path))
    assert [text for text, n in counts.items() if n > 1] == []


PAIRS = [
    (evaluated, other)
    for evaluated, other in itertools.product(list(PROMPTS)[:3], PROMPTS)
    if evaluated != other
    and (other not in list(PROMPTS)[:3] or list(PROMPTS).index(evaluated) < list(PROMPTS).index(other))
]


@pytest.mark.parametrize(("evaluated", "other"), PAIRS, ids=lambda p: p.stem)
def test_no_evaluation_prompt_has_a_near_twin_in_other_data(evaluated, other):
    twins = [(a, b) for a in texts(evaluated) for b in texts(other) if overlap(a, b) >= 0.6 and not same_frame(a, b)]
    assert twins == []


def same_frame(a: str, b: str) -> bool:
    """Questions that share a common frame and ask for other things."""
    frames = [r"what is the difference between (.*)", r"what does (.*) mean"]
    found = [(re.fullmatch(f, " ".join(words(a))), re.fullmatch(f, " ".join(words(b)))) for f in frames]
    return any(x and y and not set(x[1].split()) - {"and", "a"} & set(y[1].split()) for x, y in found)


def test_gradsafes_reference_prompts_are_two_pairs_that_no_benchmark_asks():
    prompts = json.loads((BASELINES / "gradsafe_prompts.json").read_text())
    assert [len(prompts[kind]) for kind in ("unsafe", "safe")] == [2, 2]
    for prompt in [*prompts["unsafe"], *prompts["safe"]]:
        asked = itertools.chain.from_iterable(texts(path) for path in list(PROMPTS)[:3])
        assert max(overlap(prompt, text) for text in asked) < 0.6
