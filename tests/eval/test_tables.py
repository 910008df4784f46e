"""Guards the readers of data files: every format, every way a file can be broken, and no error but DataError."""

import contextlib
import csv
import gzip
import io
import json
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eval.errors import DataError
from eval.tables import read_rows, text_field

ROWS = [
    {"prompt": "plain", "category": "a"},
    {"prompt": 'two\nlines, a comma and "quotes"', "category": "ünï ’码"},
    {"prompt": "", "category": "tab\there"},
]


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def encode(ending: str, rows: list[dict[str, str]]) -> bytes:
    if ending == ".parquet":
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), out)
        return out.getvalue()
    return {
        ".jsonl": lambda: "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows),
        ".json": lambda: json.dumps(rows, indent=2),
        ".csv": lambda: as_csv(rows),
        ".tsv": lambda: as_csv(rows, "\t"),
    }[ending]().encode()


def written(tmp_path, name: str, data: bytes | str):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def failure(path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_yields_the_same_rows(tmp_path, ending):
    path = written(tmp_path, f"rows.v1{ending}", encode(ending, ROWS))
    assert [row for _, row in read_rows(path)] == ROWS


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv"])
def test_gzip_and_a_byte_order_mark_change_nothing(tmp_path, ending):
    data = encode(ending, ROWS)
    for name, content in {
        f"a{ending}": b"\xef\xbb\xbf" + data,
        f"b{ending}.gz": gzip.compress(data, mtime=0),
        f"c{ending.upper()}.GZ": gzip.compress(b"\xef\xbb\xbf" + data, mtime=0),
    }.items():
        assert [row for _, row in read_rows(written(tmp_path, name, content))] == ROWS


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv"])
def test_windows_line_ends_are_line_ends(tmp_path, ending):
    plain = [{"prompt": "one", "category": "a"}, {"prompt": "two", "category": "b"}]
    data = encode(ending, plain).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert [row for _, row in read_rows(written(tmp_path, f"a{ending}", data))] == plain


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    jsonl = written(tmp_path, "a.jsonl", '{"a": "1"}\n\n   \n{"a": "2"}')
    assert list(read_rows(jsonl)) == [(1, {"a": "1"}), (4, {"a": "2"})]
    table = written(tmp_path, "a.csv", "a,b\n1,2\n\n3,4\n")
    assert list(read_rows(table)) == [(2, {"a": "1", "b": "2"}), (4, {"a": "3", "b": "4"})]


def test_unicode_line_separators_do_not_split_a_jsonl_row(tmp_path):
    text = "one\u2028two\u0085three\x0bfour"
    path = written(tmp_path, "a.jsonl", json.dumps({"a": text}, ensure_ascii=False))
    assert list(read_rows(path)) == [(1, {"a": text})]


def test_a_newline_in_quotes_belongs_to_its_csv_field(tmp_path):
    path = written(tmp_path, "a.csv", 'prompt,n\n"first\nsecond",1\nlast,2\n')
    assert [row for _, row in read_rows(path)] == [{"prompt": "first\nsecond", "n": "1"}, {"prompt": "last", "n": "2"}]


def test_a_json_array_of_strings_is_a_list_of_prompts(tmp_path):
    path = written(tmp_path, "a.json", '["one", {"prompt": "two", "x": 1}]')
    assert list(read_rows(path)) == [(1, {"prompt": "one"}), (2, {"prompt": "two", "x": 1})]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', ", line 2: not valid JSON"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', ", line 3: expected a JSON object, found list"),
        ("a.jsonl", "7\n", ", line 1: expected a JSON object, found int"),
        ("a.jsonl", "null\n", ", line 1: expected a JSON object, found NoneType"),
        ("a.jsonl", "{'a': 1}\n", ", line 1: not valid JSON"),
        ("a.json", '[\n {"a": 1},\n {"a": }\n]', ", line 3: not valid JSON"),
        ("a.json", '[{"a": 1}, 3]', ", line 2: expected a JSON object, found int"),
        ("a.json", '{"a": 1}', ": expected a JSON array"),
        ("a.json", '"text"', ": expected a JSON array"),
        ("a.json", "12.5", ": expected a JSON array"),
        ("a.json", "null", ": expected a JSON array"),
        ("a.json", "", ", line 1: not valid JSON"),
        ("a.csv", "a,b\n1,2\n3\n", ", line 3: 1 fields where the header has 2"),
        ("a.csv", "a,b\n1,2\n3,4,5,6\n", ", line 3: 4 fields where the header has 2"),
        ("a.tsv", "a\tb\n1\t2\t3\n", ", line 2: 3 fields where the header has 2"),
        ("a.csv", "a,b,a\n1,2,3\n", ", line 1: column names repeat"),
        ("a.csv", '"a"x,b\n1,2\n', ", line 1: not valid CSV"),
        ("a.csv", 'a,b\n1,2\n"x"y,3\n', ", line 3: not valid CSV"),
        ("a.csv", 'a,b\n1,2\n3,"open\nstill open\n', ", line 3: not valid CSV"),
        ("a.parquet", b"PAR1 not really PAR1", ": not valid Parquet"),
        ("a.parquet", b"", ": not valid Parquet"),
        ("a.jsonl.gz", b"not gzip", ": cannot be read"),
        ("a.jsonl.gz", b"", None),
        ("a.txt", "x", ": unknown file format"),
        ("noending", "x", ": unknown file format"),
        ("a.gz", gzip.compress(b"{}", mtime=0), ": unknown file format"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, says):
    path = written(tmp_path, name, content)
    if says is None:
        assert list(read_rows(path)) == []  # an empty gzip member list decompresses to nothing
    else:
        assert failure(path).startswith(says)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_an_error_that_names_the_byte(tmp_path, ending, encoding):
    text = encode(ending, [{"prompt": "fine"}, {"prompt": "naïve"}]).decode()
    text = text.replace("\\u00ef", "ï")
    message = failure(written(tmp_path, f"a{ending}", text.encode(encoding)))
    assert "not UTF-8 (byte 0x" in message
    if encoding == "latin-1":
        line = text[: text.index("ï")].count("\n") + 1
        assert message == f", line {line}: not UTF-8 (byte 0xef)"


@pytest.mark.parametrize("cut", [11, 20, -9, -4])
def test_a_damaged_gzip_file_is_a_data_error(tmp_path, cut):
    data = gzip.compress(encode(".jsonl", ROWS * 50))
    assert "cannot be read" in failure(written(tmp_path, "a.jsonl.gz", data[:cut]))


def test_flipped_bytes_in_a_gzip_file_are_a_data_error(tmp_path):
    data = bytearray(gzip.compress(encode(".jsonl", ROWS * 50)))
    data[15:40] = b"\xff" * 25
    with pytest.raises((zlib.error, OSError, EOFError)):  # the damage is real ...
        gzip.decompress(bytes(data))
    assert "cannot be read" in failure(written(tmp_path, "a.jsonl.gz", bytes(data)))  # ... and reported as ours


def test_a_nesting_bomb_is_a_data_error(tmp_path):
    bomb = "[" * 200_000
    assert "nested too deeply" in failure(written(tmp_path, "a.json", bomb))
    assert failure(written(tmp_path, "a.jsonl", '{"a": 1}\n' + bomb)).startswith(", line 2: JSON nested too deeply")


def test_a_number_too_long_to_convert_is_a_data_error(tmp_path):
    row = '{"a": ' + "9" * 5000 + "}"
    assert failure(written(tmp_path, "a.jsonl", '{"a": 1}\n' + row)).startswith(", line 2: not valid JSON")


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path):
    assert failure(tmp_path / "absent.jsonl") == ": no such file"
    (tmp_path / "folder.csv").mkdir()
    assert failure(tmp_path / "folder.csv") == ": no such file"


ENDINGS = st.sampled_from(
    [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz", ".parquet.gz"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FUZZ = (
    st.binary(max_size=200)
    | st.text(alphabet='{}[]",:\n\r\t\\ua0\x00é', max_size=60).map(str.encode)
    | VALUES.map(lambda v: json.dumps(v).encode())
    | st.binary(max_size=80).map(gzip.compress)
    | st.tuples(st.integers(0, 400), st.integers(0, 255)).map(lambda at: damaged(*at))
)
PARQUET = encode(".parquet", ROWS)


def damaged(position: int, byte: int) -> bytes:
    data = bytearray(PARQUET)
    data[-1 - position % len(data)] = byte
    return bytes(data)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ENDINGS, FUZZ)
@example(".jsonl", b'{"a": 1e999999}')
@example(".csv", b"a\x00b,c\n1,2\n")
@example(".csv", b"\n\n\n")
def test_whatever_the_bytes_only_a_data_error_escapes(tmp_path, ending, data):
    path = written(tmp_path, f"fuzz{ending}", data)
    rows = []
    with contextlib.suppress(DataError):
        rows = list(read_rows(path))
    assert all(isinstance(line, int) and line >= 1 and isinstance(row, dict) for line, row in rows)


def test_a_field_is_text_or_an_error_that_names_it():
    row = {"a": "text", "n": 3, "none": None, "list": ["x"]}
    assert text_field("f", 4, row, "a") == "text"
    assert text_field("f", 4, row, "absent", required=False) == ""
    assert text_field("f", 4, row, "none", required=False) == ""
    for field, says in {"absent": "missing", "n": "found int", "none": "found NoneType", "list": "found list"}.items():
        with pytest.raises(DataError, match=rf"^f, line 4, field '{field}': .*{says}"):
            text_field("f", 4, row, field)
    with pytest.raises(DataError, match="found int"):
        text_field("f", 4, row, "n", required=False)


def test_text_that_no_file_can_hold_is_an_error(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"a": "half a pair: \\ud83d"}')
    (line, row), *_ = read_rows(path)
    with pytest.raises(DataError, match=r"line 1, field 'a'.*surrogate"):
        text_field(path, line, row, "a")
