"""Large data sets: held in a file, scored, cut and written without a list of all of them, with the same result."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from baselines import Sample
from baselines.records import PromptResponses, Scores
from suite import ranking
from suite.ranking import score_rows, tracked_places, write_ranking, write_selected
from suite.report.load import Run
from suite.stages import data as data_stage
from suite.stages.data import Data, ids_key, load_data
from suite.stages.sample_table import BATCH, SampleTable
from suite.stages.score_files import read_scores, write_scores
from tests.helpers import plan

N = 3 * BATCH + 7


@pytest.fixture
def samples() -> list[Sample]:
    return [Sample.of(f"Question {i}?", "word " * (i % 9) + "ende", input="x" * (i % 3)) for i in range(N)]


def test_a_sample_table_is_the_list_it_was_made_of(samples):
    table = SampleTable.write(iter(samples))
    assert len(table) == N
    assert list(table) == samples
    assert [table[i] for i in (0, BATCH - 1, BATCH, N - 1, -1)] == [samples[i] for i in (0, BATCH - 1, BATCH, -1, -1)]
    assert table[5:8] == samples[5:8]
    places = np.random.default_rng(0).permutation(N)
    assert table.take(places) == [samples[i] for i in places]
    assert table.take([]) == []
    assert list(table.ids()) == [s.id for s in samples]
    assert table.places([samples[9].id, samples[2].id]).tolist() == [9, 2]
    with pytest.raises(KeyError, match="nobody"):
        table.places([samples[0].id, "nobody"])
    with pytest.raises(IndexError):
        table[N]
    path = table.path
    another = SampleTable(path)  # as a scoring process gets it
    assert another[N - 1] == samples[-1]
    del another
    assert path.exists()
    del table
    assert not path.exists()
    assert PromptResponses(samples, [3, 1])[1] == (samples[1].prompt, samples[1].response)


def test_many_rows_are_held_in_a_file_and_few_in_a_list(samples, tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": s.instruction, "input": s.input, "output": s.response} for s in samples]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "output": ""}]))
    spec = plan(None, "dataset=jsonl", f"dataset.path={file}").dataset
    few = load_data(spec, None)
    monkeypatch.setattr(data_stage, "IN_MEMORY", N - 1)
    many = load_data(spec, None)
    assert isinstance(few.samples, list)
    assert isinstance(many.samples, SampleTable)
    assert few.skipped == many.skipped == {"empty response": 1}
    assert few.key == many.key
    assert list(many.samples) == few.samples
    ids = [few.samples[i].id for i in (N - 1, 0, BATCH)]
    assert many.chosen(ids) == few.chosen(ids)


def test_tables_of_many_parts_equal_those_of_one(samples, tmp_path, monkeypatch):
    ids = tuple(s.id for s in samples)
    score = np.random.default_rng(1).normal(size=N)
    scores = Scores(ids, score, {"unsafe": score / 2}, {"layer": 3})
    write_scores(tmp_path, scores)
    again = read_scores(tmp_path)
    assert again.ids == ids
    assert again.info == {"layer": 3}
    np.testing.assert_array_equal(again.score, score)
    np.testing.assert_array_equal(again.components["unsafe"], score / 2)

    selected = [ids[i] for i in scores.ranking()[:100]]
    expected = score_rows(scores, Data(samples, {}, ids_key(ids)), selected)
    assert [row["rank"] for row in expected] == list(range(1, N + 1))
    assert [row["id"] for row in expected if row["selected"]] == selected
    monkeypatch.setattr(ranking, "PART", 100)
    data = Data(SampleTable.write(samples), {}, ids_key(ids))
    write_ranking(tmp_path / "scores.parquet", scores, data, selected)
    write_selected(tmp_path / "selected.parquet", data, selected)
    assert pq.ParquetFile(tmp_path / "scores.parquet").metadata.num_row_groups == 16
    assert pq.read_table(tmp_path / "scores.parquet").to_pylist() == expected
    assert pq.read_table(tmp_path / "selected.parquet")["id"].to_pylist() == selected

    run = Run(tmp_path, "", {"stages": "[]"}, "")
    n, first, last = run.ends("scores", ["rank", "prompt"], 250)
    assert n == N
    assert first["rank"].to_pylist() == list(range(1, 251))
    assert last["rank"].to_pylist() == list(range(N - 249, N + 1))
    n, first, last = run.ends("scores", ["rank"], N - 3)
    assert (first.num_rows, last["rank"].to_pylist()) == (N - 3, [N - 2, N - 1, N])


def test_wandb_gets_both_ends_of_a_long_ranking(monkeypatch):
    assert tracked_places(7).tolist() == list(range(7))
    monkeypatch.setattr(ranking, "TRACKED", 6)
    monkeypatch.setattr(ranking, "ENDS", 2)
    assert tracked_places(7).tolist() == [0, 1, 5, 6]
