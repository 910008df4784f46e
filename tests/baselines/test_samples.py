"""Guards the loading of fine-tuning sets: every format, what is skipped, which line and field an error names."""

import json
from collections import Counter

import pytest

from baselines.records import Sample
from baselines.samples import detect_format, load_samples, samples_from_rows
from eval.errors import DataError, UnknownNameError

WANTED = [
    ("Translate.\nHello", "Bonjour", "Hello", "language"),
    ("Say nothing", "Nothing", "", ""),
]
FORMATS = {
    "alpaca": [
        {"instruction": "Translate.", "input": "Hello", "output": "Bonjour", "category": "language"},
        {"instruction": "Say nothing", "input": "", "output": "Nothing"},
    ],
    "dolly": [
        {"instruction": "Translate.", "context": "Hello", "response": "Bonjour", "category": "language"},
        {"instruction": "Say nothing", "context": None, "response": "Nothing", "category": None},
    ],
    "messages": [
        {
            "messages": [{"role": "user", "content": "Translate.\nHello"}, {"role": "assistant", "content": "Bonjour"}],
            "category": "language",
        },
        {"messages": [{"role": "user", "content": "Say nothing"}, {"role": "assistant", "content": "Nothing"}]},
    ],
    "prompt_completion": [
        {"prompt": "Translate.\nHello", "completion": "Bonjour", "category": "language"},
        {"prompt": "Say nothing", "response": "Nothing"},
    ],
}


def from_rows(*rows: dict, format: str = "auto"):
    return samples_from_rows(list(enumerate(rows, start=1)), path="f", source="src", format=format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("named", [True, False])
def test_every_format_gives_the_same_samples_named_or_detected(format, named):
    found = from_rows(*FORMATS[format], format=format if named else "auto").samples
    assert [(s.prompt, s.response, s.category) for s in found] == [(p, r, c) for p, r, _, c in WANTED]
    if format in ("alpaca", "dolly"):
        assert [s.input for s in found] == [i for _, _, i, _ in WANTED]
    assert {s.source for s in found} == {"src"}
    assert found[0].id == Sample.of(found[0].instruction, found[0].response, input=found[0].input).id


@pytest.mark.parametrize("format", FORMATS)
def test_files_of_every_kind_give_what_their_rows_give(tmp_path, format):
    wanted = from_rows(*FORMATS[format])
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in FORMATS[format]))
    array = tmp_path / "a.json"
    array.write_text(json.dumps(FORMATS[format]))
    assert load_samples(jsonl, source="src") == wanted
    assert load_samples(array, source="src") == wanted


def test_columns_of_a_csv_are_an_alpaca_set(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('instruction,input,output\nTranslate.,Hello,Bonjour\n"two\nlines",,x\n')
    assert [s.prompt for s in load_samples(path, source="src").samples] == ["Translate.\nHello", "two\nlines"]


def test_rows_without_a_response_are_skipped_and_counted():
    empty = {"instruction": "a", "input": "", "output": " \n"}
    full = {"instruction": "a", "input": "", "output": "b"}
    found = from_rows(empty, full, empty)
    assert len(found.samples) == 1
    assert found.skipped == {"empty response": 2}
    assert from_rows(full).skipped == {}
    with pytest.raises(DataError, match=r"f: no usable row \(empty response: 2\)"):
        from_rows(empty, empty)
    with pytest.raises(DataError, match=r"f: no usable row$"):
        from_rows()


def test_a_row_that_stands_again_gets_an_id_of_its_own_which_depends_on_nothing_else():
    row, other = {"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}
    ids = [s.id for s in from_rows(row, other, row, row).samples]
    assert len(set(ids)) == 4
    assert [ids[0], ids[2], ids[3], ids[1]] == [s.id for s in from_rows(row, row, row, other).samples]


BROKEN = [
    ("alpaca", {"instruction": "a"}, "f, line 2, field 'output': missing"),
    ("alpaca", {"output": "a"}, "f, line 2, field 'instruction': missing"),
    ("alpaca", {"instruction": "a", "output": None}, "f, line 2, field 'output': expected text, found NoneType"),
    ("alpaca", {"instruction": 3, "output": "a"}, "f, line 2, field 'instruction': expected text, found int"),
    ("alpaca", {"instruction": "a", "input": ["x"], "output": "a"}, "f, line 2, field 'input': expected text"),
    ("alpaca", {"instruction": " ", "output": "a"}, "f, line 2, field 'instruction': empty instruction"),
    ("dolly", {"instruction": "a", "context": "b"}, "f, line 2, field 'response': missing"),
    ("prompt_completion", {"prompt": "a"}, "f, line 2, field 'completion': missing"),
    ("prompt_completion", {"prompt": "", "completion": "b"}, "f, line 2, field 'prompt': empty instruction"),
    ("messages", {"messages": "hello"}, "f, line 2, field 'messages': expected a list"),
    ("messages", {"messages": ["hello"]}, "f, line 2, field 'messages': expected a list"),
    ("messages", {"other": 1}, "f, line 2, field 'messages': expected a list"),
    ("messages", {"messages": []}, r"f, line 2, field 'messages': expected one user .* found roles \[\]"),
    (
        "messages",
        {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]},
        r"f, line 2, field 'messages': expected one user .* found roles \['assistant', 'user'\]",
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]},
        "f, line 2, field 'content': missing",
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": "\n"}, {"role": "assistant", "content": "b"}]},
        "f, line 2, field 'messages': empty instruction",
    ),
]


@pytest.mark.parametrize(("format", "row", "says"), BROKEN)
def test_a_broken_row_is_an_error_that_names_line_and_field(format, row, says):
    with pytest.raises(DataError, match=says):
        from_rows(FORMATS[format][0], row)


def test_the_first_row_decides_the_format():
    for format, rows in FORMATS.items():
        assert detect_format("f", 1, rows[0]) == format
    with pytest.raises(DataError, match="line 2, field 'output': missing"):
        from_rows(FORMATS["alpaca"][0], FORMATS["dolly"][0])


def test_a_row_of_no_known_format_and_an_unknown_format_are_refused():
    with pytest.raises(DataError, match=r"f, line 1: the fields \['answer', 'question'\] fit no known format .*alpaca"):
        from_rows({"question": "a", "answer": "b"})
    with pytest.raises(UnknownNameError, match=r"unknown data format 'alpacca'\. Did you mean 'alpaca'"):
        from_rows({"instruction": "a", "output": "b"}, format="alpacca")


def test_the_published_alpaca_rows_load(shared_data):
    found = load_samples(shared_data / "alpaca" / "train.jsonl", source="alpaca")
    assert len(found.samples) + sum(found.skipped.values()) == 3236
    assert len({s.id for s in found.samples}) == len(found.samples)
    assert all(s.response.strip() for s in found.samples)
    assert sum(bool(s.input) for s in found.samples) > 500
    with (shared_data / "alpaca" / "train.jsonl").open() as lines:
        empty = sum(not json.loads(line)["output"].strip() for line in lines)
    assert found.skipped == ({"empty response": empty} if empty else {})


def test_the_published_dolly_rows_load(shared_data):
    found = load_samples(shared_data / "dolly" / "train.jsonl", source="dolly")
    assert len(found.samples) == 782
    assert found.skipped == {}
    assert any(s.input for s in found.samples)
    assert len(Counter(s.category for s in found.samples)) > 3
