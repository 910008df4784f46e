"""Guards the evaluation records: ids that never change, labels that cannot be misspelt."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.records import LABELS, Completion, Prompt, Verdict, as_rows, content_id


def test_an_id_is_the_hash_of_length_prefixed_fields():
    by_hand = b"\0\0\0\0\0\0\0\x03abc" + b"\0\0\0\0\0\0\0\x02\xc3\xa9"
    assert content_id("abc", "é") == hashlib.sha256(by_hand).hexdigest()[:16]


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_ids_differ_exactly_where_fields_differ(a, b):
    assert (content_id(*a) == content_id(*b)) == (a == b)


def test_the_fields_borders_count():
    assert len({content_id("ab", "c"), content_id("a", "bc"), content_id("abc"), content_id("abc", "")}) == 4


@pytest.mark.parametrize("label", ["", "Refused", "safe", "harmfull"])
def test_an_unknown_label_is_refused(label):
    with pytest.raises(ValueError, match="is not one of"):
        Verdict("p", "judge", label, 0.0, "")


def test_all_labels_are_accepted():
    assert [Verdict("p", "j", label, 0.0, "").label for label in LABELS] == [
        "harmful",
        "not_harmful",
        "refused",
        "complied",
        "incoherent",
        "unparsed",
        "not_judged",
    ]


def test_records_become_rows_in_order_under_their_fields_names():
    completions = [Completion("b", "two", 2, "stop"), Completion("a", "one", 1, "length")]
    assert as_rows(completions) == [
        {"prompt_id": "b", "text": "two", "n_tokens": 2, "finish_reason": "stop"},
        {"prompt_id": "a", "text": "one", "n_tokens": 1, "finish_reason": "length"},
    ]
    assert as_rows([]) == []


def test_a_record_cannot_be_changed():
    prompt = Prompt("i", "b", "t", "c", "refuse")
    with pytest.raises(AttributeError):
        prompt.text = "other"
