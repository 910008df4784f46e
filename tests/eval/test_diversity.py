"""Lexical diversity against plain counting, by hand and on real texts."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.diversity import lexical_diversity, msttr, words
from eval.errors import KeelBenchError


def plain(texts, segment):
    """The definitions, counted one n-gram at a time."""
    tokenised = [words(t) for t in texts]
    out = {}
    for n in (1, 2, 3):
        grams = [" ".join(t[i : i + n]) for t in tokenised for i in range(len(t) - n + 1)]
        if not grams:
            out[f"entropy_{n}"] = out[f"distinct_{n}"] = None
            continue
        out[f"entropy_{n}"] = -sum(
            grams.count(g) / len(grams) * math.log2(grams.count(g) / len(grams)) for g in set(grams)
        )
        out[f"distinct_{n}"] = len(set(grams)) / len(grams)
    flat = [token for tokens in tokenised for token in tokens]
    ratios = []
    while len(flat) >= segment:
        ratios.append(len(set(flat[:segment])) / segment)
        flat = flat[segment:]
    out["msttr"] = sum(ratios) / len(ratios) if ratios else None
    del out["distinct_1"]
    return out


def check(texts, segment):
    found = lexical_diversity(texts, segment=segment)
    for name, value in plain(texts, segment).items():
        assert getattr(found, name) == (None if value is None else pytest.approx(value, abs=1e-9)), name


def test_by_hand():
    found = lexical_diversity(["the cat and the dog", "The cat!"], segment=3)
    assert (found.texts, found.tokens, found.vocabulary) == (2, 7, 4)
    # the 3, cat 2, and 1, dog 1 of 7
    assert found.entropy_1 == pytest.approx(-(3 * math.log2(3 / 7) + 2 * math.log2(2 / 7) + 2 * math.log2(1 / 7)) / 7)
    # the cat 2; cat and, and the, the dog
    assert found.distinct_2 == pytest.approx(4 / 5)
    assert found.entropy_2 == pytest.approx(-(2 / 5 * math.log2(2 / 5) + 3 / 5 * math.log2(1 / 5)))
    assert found.distinct_3 == 1
    assert found.entropy_3 == pytest.approx(math.log2(3))
    # the cat and | the dog the | (cat)
    assert found.msttr == pytest.approx((1 + 2 / 3) / 2)


@given(st.lists(st.text("ab '.\n", max_size=30), max_size=8), st.integers(1, 6))
def test_against_plain_counting(texts, segment):
    if any(words(t) for t in texts):
        check(texts, segment)
    else:
        with pytest.raises(KeelBenchError, match="has a word"):
            lexical_diversity(texts, segment=segment)


def test_against_plain_counting_on_real_answers(shared_data):
    rows = [json.loads(line) for line in (shared_data / "dolly" / "train.jsonl").read_text().splitlines()[:12]]
    check([row["response"] for row in rows], 50)


def test_words_keep_apostrophes_and_lose_punctuation_and_case():
    assert words("I can’t -- don't, 'really'; naïve 3.5 C++") == [
        "i", "can’t", "don't", "really", "naïve", "3", "5", "c",
    ]  # fmt: skip


def test_ngrams_do_not_span_texts():
    together, apart = lexical_diversity(["a b c d"]), lexical_diversity(["a b", "c d"])
    assert together.distinct_3 == 1
    assert apart.distinct_3 is None
    assert apart.entropy_3 is None
    assert together.entropy_1 == apart.entropy_1 == 2


def test_texts_shorter_than_a_segment_have_no_msttr():
    assert msttr([["a"] * 49]) is None
    assert msttr([["a"] * 50]) == 1 / 50
    with pytest.raises(KeelBenchError, match="segment=0"):
        lexical_diversity(["a"], segment=0)


def test_repeating_a_set_lowers_what_depends_on_size_and_keeps_the_entropy():
    texts = [f"answer number {i} says something of its own" for i in range(30)]
    once, thrice = lexical_diversity(texts), lexical_diversity(texts * 3)
    assert thrice.entropy_1 == pytest.approx(once.entropy_1)
    assert thrice.distinct_2 == pytest.approx(once.distinct_2 / 3)
