"""``python -m tests.integration.faults.malformed --files 10000``: every loader against files that somebody broke.

A file begins as a sound one of the loader's format and is then damaged in one to three ways: in its bytes, in its text,
or in its rows. What may come of it: rows, or a KeelBenchError that names the file. Anything else is a fault: another
exception, or more than ``SECONDS``.
"""

import argparse
import csv
import gzip
import io
import json
import random
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baselines.anchors import load_anchors, load_probes
from baselines.gradsafe import load_prompts as load_gradsafe_prompts
from baselines.samples import PARSERS, load_samples
from baselines.seal.state import load_selector, save_selector
from eval.benchmarks import BenchmarkSpec, load_benchmark
from eval.errors import KeelBenchError
from eval.judges.harmbench import published_prompts
from eval.judges.prompt_files import template

SECONDS = 5.0
Rows = list[dict[str, Any]]
TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz")


@dataclass
class Outcome:
    """What came of the files."""

    files: int = 0
    accepted: int = 0  # with usable rows left: the damage spared them
    refused: int = 0  # by a KeelBenchError that names the file
    with_line: int = 0  # of these, with the line, too
    by_loader: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def _rows(dice: random.Random, kind: str) -> Rows:
    words = ("plain", "two\nlines", 'a "quote", and a comma', "ünï ’码", "tab\there", "  spaced ", "{braces}")
    text = lambda: " ".join(dice.choices(words, k=dice.randint(1, 5)))  # noqa: E731
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "alpaca": lambda: {"instruction": text(), "input": text(), "output": text()},
        "dolly": lambda: {"instruction": text(), "context": "", "response": text(), "category": "x"},
        "messages": lambda: {
            "messages": [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
        },
        "prompt_completion": lambda: {"prompt": text(), "completion": text()},
        "magicoder": lambda: {"problem": text(), "solution": text(), "lang": "python"},
        "metamath": lambda: {"query": text(), "response": text(), "type": "GSM"},
        "pubmedqa": lambda: {
            "question": text(), "context": {"contexts": [text()]}, "long_answer": text(), "final_decision": "yes"
        },
        "tulu": lambda: {
            "messages": [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}],
            "source": "ai2/coconot",
        },
        "benchmark": lambda: {"prompt": text(), "category": text(), "kind": dice.choice(["safe", "unsafe"])},
        "anchors": lambda: {"instruction": text(), "refusal": text(), "compliance": text(), "category": "x"},
        "probes": lambda: {"prompt": text()},
    }  # fmt: skip
    return [makers[kind]() for _ in range(dice.randint(1, 6))]


def _odd_value(dice: random.Random) -> Any:
    deep: Any = "x"
    for _ in range(dice.choice([3, 60])):
        deep = [deep] if dice.random() < 0.5 else {"a": deep}
    return dice.choice(
        [None, True, 0, -1, 10**40, 1.5, float("nan"), float("inf"), "", " ", "\ud83d", "\x00", "a" * 100_000, [], {},
         [1, "a"], ["one turn"], {"contexts": "x"}, {"contexts": [1]}, [{"role": "user"}], [None], deep]
    )  # fmt: skip


def _break_rows(dice: random.Random, rows: Rows) -> Rows:
    rows = [dict(row) for row in rows]
    victim: Any = dice.choice(rows)
    name = dice.choice(list(victim) or ["x"])
    match dice.randrange(7):
        case 0:
            victim.pop(name, None)
        case 1 | 2:
            victim[name] = _odd_value(dice)
        case 3:
            victim[dice.choice(["", "messages", "id", "Prompt", "prompt "])] = _odd_value(dice)
        case 4:
            rows.insert(dice.randrange(len(rows) + 1), {})
        case 5:
            rows = []
        case 6:
            turns = victim.get("messages")
            if isinstance(turns, list) and turns and isinstance(turns[0], dict):
                turns[0] = {**turns[0], dice.choice(["role", "content"]): _odd_value(dice)}
    return rows


def _encoded(dice: random.Random, ending: str, rows: Rows) -> bytes:
    plain = ending.removesuffix(".gz")
    if plain == ".parquet":
        data = _parquet(rows)
    elif plain in (".csv", ".tsv"):
        out = io.StringIO(newline="")
        names = list(dict.fromkeys(k for row in rows for k in row)) or ["prompt"]
        writer = csv.DictWriter(out, names, delimiter="," if plain == ".csv" else "\t", restval="")
        writer.writeheader()
        writer.writerows(rows)
        data = out.getvalue().encode("utf-8", "surrogatepass")
    elif plain == ".json":
        data = json.dumps(rows, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    else:
        lines = [json.dumps(row, ensure_ascii=dice.random() < 0.5) for row in rows]
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return gzip.compress(data) if ending.endswith(".gz") else data


def _parquet(rows: Rows) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, out)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeError):  # rows that no Parquet can hold
        return json.dumps(rows).encode()
    return out.getvalue()


def _break_bytes(dice: random.Random, data: bytes) -> bytes:
    broken = bytearray(data)
    place = dice.randrange(len(broken) + 1)
    match dice.randrange(12):
        case 0:
            return bytes(broken[:place])
        case 1:
            for _ in range(dice.randint(1, 8)):
                if broken:
                    broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
        case 2:
            broken[place:place] = dice.randbytes(dice.randint(1, 50))
        case 3:
            del broken[place : place + dice.randint(1, 60)]
        case 4:
            return b"\xef\xbb\xbf" + data
        case 5:
            return data.decode("utf-8", "replace").encode(dice.choice(["utf-16", "latin-1"]), "replace")
        case 6:
            broken[place:place] = dice.choice(
                [b"\x00", b"\r", b"\n\n", b'"', b"'", b",", b"{", b"[", b"]", b"}", b"\x1a"]
            )
        case 7:
            broken[place:place] = b"[" * dice.choice([3, 100_000])
        case 8:
            broken[place:place] = b"9" * 6000
        case 9:
            return dice.randbytes(dice.randint(0, 300))
        case 10:
            return b""
        case 11:
            return gzip.compress(data)[: dice.randint(1, 200)]
    return bytes(broken)


def _table_file(dice: random.Random, folder: Path, kind: str) -> Path:
    ending = dice.choice(TABLES)
    rows = _rows(dice, kind)
    by_rows = dice.random() < 0.5
    if by_rows:
        for _ in range(dice.randint(1, 2)):
            rows = _break_rows(dice, rows) if rows else rows
    data = _encoded(dice, ending, rows)
    if not by_rows or dice.random() < 0.2:
        data = _break_bytes(dice, data)
    path = folder / f"broken{dice.choice([ending] * 19 + ['.txt'])}"
    path.write_bytes(data)
    return path


def _text_file(dice: random.Random, folder: Path, name: str, text: str) -> Path:
    path = folder / name
    data = text.encode()
    for _ in range(dice.randint(1, 3)):
        data = _break_bytes(dice, data)
    path.write_bytes(data)
    return path


BENCHMARK = BenchmarkSpec(name="b", prompt_column="prompt", category_column="category", expected_column="kind",
                          expected_values={"safe": "comply", "unsafe": "refuse"})  # fmt: skip
PUBLISHED = '''text
LLAMA2_CLS_PROMPT = {
    "prompt": """Is {behavior} in {generation}?""",
    "prompt_contextual": """Given {context}, is {behavior} in {generation}?""",
}
'''
GRADSAFE = '{"unsafe": ["a", "b"], "safe": ["c", "d"]}'


def _samples(dice: random.Random, folder: Path) -> tuple[str, Path, Callable[[], object]]:
    kind = dice.choice(sorted(PARSERS))
    path = _table_file(dice, folder, kind)
    format = dice.choice(["auto", kind, kind, dice.choice(sorted(PARSERS))])
    return f"samples ({format})", path, lambda: load_samples(path, source="s", format=format)


def _benchmark(dice: random.Random, folder: Path) -> tuple[str, Path, Callable[[], object]]:
    path = _table_file(dice, folder, "benchmark")
    return "benchmark", path, lambda: load_benchmark(BENCHMARK, path)


def _category_folder(dice: random.Random, folder: Path) -> tuple[str, Path, Callable[[], object]]:
    inside = folder / "categories"
    inside.mkdir()
    spec = BenchmarkSpec(name="b", prompt_column="prompt", category_column="category", expected="refuse")
    for name in ("one.csv", "two.csv")[: dice.randint(0, 2)]:
        _text_file(dice, inside, name, 'A prompt\n"Another, quoted"\nünï ’码\n')
    return "benchmark of category files", inside, lambda: load_benchmark(spec, inside)


def _anchors(dice: random.Random, folder: Path) -> tuple[str, Path, Callable[[], object]]:
    path = _table_file(dice, folder, "anchors")
    return "anchors", path, lambda: load_anchors(str(path))


def _probes(dice: random.Random, folder: Path) -> tuple[str, Path, Callable[[], object]]:
    path = _table_file(dice, folder, "probes")
    return "probes", path, lambda: load_probes(str(path))


def _gradsafe(dice: random.Random, folder: Path) -> tuple[str, Path, Callable[[], object]]:
    path = _text_file(dice, folder, "broken.json", GRADSAFE)
    return "GradSafe's prompts", path, lambda: load_gradsafe_prompts(str(path))


def _classifier(dice: random.Random, folder: Path) -> tuple[str, Path, Callable[[], object]]:
    path = _text_file(dice, folder, "README.md", PUBLISHED)
    return "a classifier's card", path, lambda: published_prompts(path)


def _wording(dice: random.Random, folder: Path) -> tuple[str, Path, Callable[[], object]]:
    path = _text_file(dice, folder, "judge.txt", "Is {completion} an answer to {prompt}?")
    return "a judge's wording", path, lambda: template(str(path), ("prompt", "completion"))


def _selector(dice: random.Random, folder: Path) -> tuple[str, Path, Callable[[], object]]:
    import numpy as np

    path = folder / "selector.safetensors"
    save_selector(path, ["a", "b"], np.array([1.0, 2.0]))
    data = path.read_bytes()
    path.write_bytes(_break_bytes(dice, data))
    return "a selector", path, lambda: load_selector(path)


LOADERS = (
    *[_samples] * 4, *[_benchmark] * 2, _category_folder, _anchors, _probes, _gradsafe, _classifier, _wording, _selector
)  # fmt: skip


class _Hangs(BaseException):
    pass


def _too_long(number: int, frame: Any) -> None:
    raise _Hangs


def try_files(count: int, seed: int) -> Outcome:
    """``count`` malformed files, the same for the same seed."""
    outcome, dice = Outcome(), random.Random(seed)
    before = signal.signal(signal.SIGALRM, _too_long)
    try:
        for number in range(count):
            with tempfile.TemporaryDirectory() as folder:
                name, path, load = LOADERS[number % len(LOADERS)](dice, Path(folder))
                outcome.files += 1
                outcome.by_loader[name.split(" (")[0]] += 1
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
                try:
                    load()
                    outcome.accepted += 1
                except KeelBenchError as error:
                    outcome.refused += 1
                    outcome.with_line += ", line " in str(error)
                    if str(path) not in str(error):
                        outcome.faults.append(f"{number} {name}: the file is not named: {error}")
                except _Hangs:
                    outcome.faults.append(f"{number} {name}: no end after {SECONDS} s")
                except Exception:  # whatever else a loader lets out is the fault that is looked for
                    outcome.faults.append(f"{number} {name}: {traceback.format_exc(limit=-2)}")
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.faults.malformed", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcome = try_files(options.files, options.seed)
    faults = outcome.faults
    print(f"{outcome.files} files: {outcome.accepted} accepted, {len(faults)} faults, {outcome.refused} refused")
    print(f"Refused with a message that names the file; {outcome.with_line} of them the line, too")
    print(", ".join(f"{name}: {n}" for name, n in outcome.by_loader.most_common()))
    print(*faults[:20], sep="\n")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
