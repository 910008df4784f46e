"""Purify's files: what is kept leaves byte for byte, in order; what cannot be read is said with its line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import DataError, KeelBenchError
from eval.tables import read_rows
from suite.purify.files import check_output, hub_table, open_table

ROWS = [
    {"instruction": "Translate.", "input": "Hé\u2028llo", "output": 'Bon,"jour"\nnow', "meta": {"n": [1, 2.50]}},
    {"instruction": "Say", "input": "", "output": "x", "meta": None},
    {"instruction": "Third", "input": "", "output": "日本", "meta": {"deep": True}},
]
TEXTS = {
    "a.jsonl": '{"a": 1.50,  "b":"\\u00e9"}\r\n\n  {"a": 2}\n{"b": null, "a": 3}',
    "a.json": '\ufeff [ {"a": 1.50, "b": "x"} ,\n\t{"a":2},\n\t{"a":3}\n]\n',
    "a.csv": '\ufeffa,b\r\n1.50,"x\ny"\n2,\n\n3,"q""q"',
    "a.tsv": 'a\tb\n1.50\t"x\ny"\n2\t\n3\t\n',
}


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_keeping_everything_gives_the_same_bytes(name, gz, tmp_path):
    source, out = tmp_path / (name + ".gz" * gz), tmp_path / ("out" + name[1:] + ".gz" * gz)
    data = TEXTS[name].encode()
    source.write_bytes(gzip.compress(data) if gz else data)
    table = open_table(source)
    rows = list(table.rows())
    assert [r.value["a"] for r in rows] == (["1.50", "2", "3"] if "sv" in name else [1.5, 2, 3])
    table.write(out, np.array([True] * 3))
    assert (gzip.decompress(out.read_bytes()) if gz else out.read_bytes()) == data
    table.write(out, np.array([False, True, True]))
    kept = [r.value["a"] for r in open_table(out).rows()]
    assert kept == (["2", "3"] if "sv" in name else [2, 3])


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.sampled_from([None, 1, "\t"]), st.data())
def test_any_choice_of_a_json_array_is_those_rows(keep, indent, data):
    import tempfile

    values = data.draw(st.lists(st.text(), min_size=len(keep), max_size=len(keep)))
    rows = [{"instruction": v, "nested": [{"x": v}]} for v in values]
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (
            ("a.json", json.dumps(rows, indent=indent)),
            ("a.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)),
        ):
            path, out = Path(folder, name), Path(folder, "out" + name[1:])
            path.write_text(text, encoding="utf-8", newline="")
            open_table(path).write(out, np.array(keep))
            wanted = [r for r, k in zip(rows, keep, strict=True) if k]
            assert [r.value for r in open_table(out).rows()] == wanted
            assert name == "a.jsonl" or json.loads(out.read_text(encoding="utf-8")) == wanted


def test_rows_are_those_of_the_suites_own_loader(shared_data):
    for file in ("alpaca/train.jsonl", "dolly/train.jsonl"):
        path = shared_data / file
        found = [(r.line, r.value) for r in open_table(path).rows() if r.value is not None]
        wanted = list(read_rows(path))
        assert found == wanted


def test_parquet_keeps_its_schema_metadata_and_types(tmp_path):
    words = pa.dictionary(pa.int8(), pa.string())
    schema = pa.schema(
        [("instruction", pa.large_string()), ("output", words), ("n", pa.list_(pa.int16()))],
        metadata={"huggingface": "x"},
    )
    output = pa.array(["x", "y", "x"]).dictionary_encode().cast(words)
    table = pa.table({"instruction": ["a", "b", "c"], "output": output, "n": [[1], None, []]}, schema=schema)
    source, out = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(table, source, compression="zstd", row_group_size=2)
    opened = open_table(source)
    assert [r.value["output"] for r in opened.rows()] == ["x", "y", "x"]
    opened.write(out, np.array([True, False, True]))
    assert pq.read_table(out).equals(table.filter([True, False, True]))
    assert pq.read_schema(out).metadata[b"huggingface"] == b"x"
    assert pq.ParquetFile(out).metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_hub_data_set_is_written_as_the_name_asks(tmp_path):
    from datasets import Dataset

    table = hub_table(Dataset.from_list(ROWS), "hub")
    keep = np.array([True, False, True])
    table.write(tmp_path / "a.jsonl", keep)
    table.write(tmp_path / "a.parquet", keep)
    wanted = [Dataset.from_list(ROWS)[i] for i in (0, 2)]
    assert [json.loads(x) for x in (tmp_path / "a.jsonl").read_text().split("\n")[:-1]] == wanted
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == wanted


BROKEN = {
    "a.jsonl": [
        (b'{"a": 1}\n{"a": \xff}\n{"a": 3}\n', 2, r"line 2: not UTF-8 \(byte 0xff\); .*iconv -f LATIN1"),
        (b'{"a": 1}\n{"a": \n{"a": 3}\n', 2, "line 2: not valid JSON: .*column"),
        (b'{"a": 1}\n[1]\n{"a": 3}\n', 2, "line 2: expected a JSON object, found list"),
        (b'{"a": 1}\n' + b"[" * 100_000 + b"\n" + b'{"a": 3}', 2, "line 2: not valid JSON: nested too deeply"),
    ],
    "a.csv": [(b"a,b\n1,2\n1,2,3\n3,4\n", 3, "line 3: 3 fields where the header has 2")],
}


@pytest.mark.parametrize(("name", "case"), [(n, c) for n, cases in BROKEN.items() for c in cases])
def test_a_row_that_cannot_be_read_is_told_and_the_others_are_read(name, case, tmp_path):
    data, line, message = case
    (tmp_path / name).write_bytes(data)
    rows = list(open_table(tmp_path / name).rows())
    assert len(rows) == 3
    (bad,) = [r for r in rows if r.value is None]
    assert bad.line == line
    with pytest.raises(DataError, match=message):
        raise bad.problem


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'{"a": 1}', "expected a JSON array"),
        ("a.json", b'[{"a": 1},\n{"a": }]', "line 2: not valid JSON"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', r"line 1: not valid JSON: expected , or \]"),
        ("a.json", b'[{"a": 1}] x', r"expected , or \]"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16, not UTF-8: `iconv"),
        ("a.csv", b'a,b\n1,"x\n', "not valid CSV"),
        ("a.csv", b"a,b\n\xff,1\n", "line 2: not UTF-8"),
        ("a.csv", b"a,a\n1,2\n", "column names repeat"),
        ("a.parquet", b"PAR1 no", "not valid Parquet"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.xlsx", b"x", "unknown file format"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(open_table(tmp_path / name).rows())


def test_the_output_keeps_the_inputs_ending(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    table = open_table(tmp_path / "a.jsonl.gz")
    check_output(table, Path("out.jsonl"))
    check_output(table, Path("out.JSONL.gz"))
    with pytest.raises(KeelBenchError, match=r"must end in \.jsonl"):
        check_output(table, Path("out.parquet"))
