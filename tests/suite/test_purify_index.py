"""The first pass: every row told apart, with its line; and the same ids as the pipeline's."""

import json

import numpy as np
import pytest

from baselines.samples import load_samples
from eval.errors import DataError, KeelBenchError, UnknownNameError
from suite.purify.files import open_table
from suite.purify.index import KINDS, Reader, chunks, looks_english, scan

GOOD = {"instruction": "Name a colour", "input": "", "output": "Red"}
LINES = [
    json.dumps(GOOD),
    json.dumps({"instruction": "a", "input": "", "output": " \n"}),
    json.dumps({"instruction": "", "input": "b", "output": "c"}),
    "{}",
    json.dumps({"instruction": "a", "response": "dolly"}),
    json.dumps({"instruction": "a", "output": 3}),
    json.dumps({"instruction": "a", "output": "x" * 5000}),
    "not json",
    json.dumps(GOOD),
    json.dumps({"instruction": "Name another", "output": "Blue", "extra": [1]}),
    json.dumps(GOOD),
]
WANTED = [None, "empty response", "empty instruction", "unknown fields", "mixed formats", "unfit field", "huge",
          "unreadable", None, None, None]  # fmt: skip


def reader(path, **options):
    return Reader(open_table(path), options.get("format", "auto"), "src", options.get("max_characters", 1000))


@pytest.fixture
def messy(tmp_path):
    path = tmp_path / "messy.jsonl"
    path.write_text("\n".join(LINES) + "\n")
    return path


def test_every_kind_of_bad_row_is_told_apart(messy):
    index = scan(reader(messy), on_bad_row="keep", duplicates="keep", limit=None)
    assert [index.kind(i) for i in range(len(LINES))] == WANTED
    assert set(index.bad_kinds) == set(KINDS)
    assert index.lines.tolist() == list(range(1, 12))
    assert [b.line for b in index.bad] == [2, 3, 4, 5, 6, 7, 8]
    assert all(f"messy.jsonl, line {b.line}" in b.message for b in index.bad)
    assert index.scored.tolist() == [0, 8, 9, 10]
    assert index.copies == 2


def test_bad_rows_are_all_told_at_once_with_the_way_out(messy):
    with pytest.raises(KeelBenchError) as told:
        scan(reader(messy), on_bad_row="error", duplicates="keep", limit=None)
    message = str(told.value)
    assert message.startswith(f"7 rows of {messy} cannot be scored:")
    for kind in KINDS:
        assert f"1 {kind}: " in message
    assert "line 5: a row of format dolly in a file of format alpaca" in message
    assert "5,001 characters, more than max_characters=1,000" in message
    assert "on_bad_row=drop" in message


def test_duplicates_are_dropped_where_asked_for_and_keep_the_first(messy):
    index = scan(reader(messy), on_bad_row="drop", duplicates="drop", limit=None)
    assert index.scored.tolist() == [0, 9]
    assert index.copies == 2


def test_ids_and_order_are_the_pipelines_so_that_scores_are_shared(shared_data, tmp_path):
    path = shared_data / "dolly" / "train.jsonl"
    twice = tmp_path / "twice.jsonl"
    twice.write_text(path.read_text() + path.read_text()[: path.read_text().index("\n") + 1])
    for file in (path, twice):
        here = reader(file, max_characters=10**6)
        index = scan(here, on_bad_row="error", duplicates="keep", limit=None)
        wanted = load_samples(file, source="src").samples
        assert [s for part in chunks(here, index, None) for s in part] == wanted
        assert [i.decode() for i in index.ids] == [s.id for s in wanted]
        parts = list(chunks(here, index, 100))
        assert [len(p) for p in parts] == [100] * 7 + [len(wanted) - 700]
        assert [s for part in parts for s in part] == wanted


def test_a_limit_takes_the_pipelines_subset(shared_data):
    from suite.plan import DatasetSpec
    from suite.sources import Source
    from suite.stages.data import load_data

    path = shared_data / "dolly" / "train.jsonl"
    spec = DatasetSpec(name="src", format="auto", k=1, limit=50, source=Source(path=str(path)))
    wanted = load_data(spec, None).samples
    here = reader(path, max_characters=10**6)
    index = scan(here, on_bad_row="error", duplicates="keep", limit=50)
    assert [s for part in chunks(here, index, None) for s in part] == wanted


def test_a_file_without_a_usable_row_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="no row"):
        scan(reader(path), on_bad_row="drop", duplicates="keep", limit=None)
    path.write_text("{}\n{}\n")
    with pytest.raises(DataError, match=r"no row that can be scored \(2 unknown fields\)"):
        scan(reader(path), on_bad_row="drop", duplicates="keep", limit=None)
    with pytest.raises(UnknownNameError, match="alpacca"):
        reader(path, format="alpacca")


def test_a_file_that_changes_between_two_passes_is_noticed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    here = reader(path)
    index = scan(here, on_bad_row="error", duplicates="keep", limit=None)
    path.write_text(json.dumps({**GOOD, "output": "Green"}) + "\n")
    with pytest.raises(DataError, match="line 1: changed while it was read"):
        list(chunks(here, index, None))


def test_traits_are_seen(tmp_path):
    rows = [
        {"instruction": "Is it?", "output": "- one\n- two\n3. three"},
        {"instruction": "Code", "output": "```\nprint(1)\n```" + "x" * 1000},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    index = scan(reader(path, max_characters=10**4), on_bad_row="error", duplicates="keep", limit=None)
    found = {t: index.has(t).tolist() for t in ("list", "code", "question", "short", "long", "non_english")}
    assert found == {
        "list": [True, False], "code": [False, True], "question": [True, False], "short": [True, False],
        "long": [False, True], "non_english": [False, False],
    }  # fmt: skip


def test_languages_are_told_apart_roughly(shared_data):
    assert not looks_english("日本の首都は東京です。人口は約千四百万人です。")
    assert not looks_english(
        "Die Hauptstadt Deutschlands heißt Berlin und liegt am Fluss Spree; dort wohnen mehr als drei Millionen "
        "Menschen, die täglich zur Arbeit fahren, einkaufen gehen oder einfach spazieren."
    )
    assert looks_english("2 + 2 = 4")
    assert looks_english("The capital of Germany is Berlin.")
    texts = [
        f"{s.prompt}\n{s.response}" for s in load_samples(shared_data / "dolly" / "train.jsonl", source="d").samples
    ]
    assert np.mean([looks_english(t) for t in texts]) > 0.97
