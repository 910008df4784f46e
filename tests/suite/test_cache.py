"""The stage cache: keys by content, whole entries only, damage found, one job computes while others wait."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite.machine import peak_memory_mb
from suite.storage.cache import MANIFEST, StageCache, fingerprint


def writer(text: str, calls: list[str]):
    def compute(out: Path) -> int:
        calls.append(text)
        (out / "value.txt").write_text(text)
        (out / "sub").mkdir()
        (out / "sub" / "more.bin").write_bytes(b"\0" * 1000)
        return 7

    return compute


def test_a_second_request_finds_the_first_ones_output(tmp_path):
    cache, calls = StageCache(tmp_path), []
    first = cache.entry("s", "1", {"x": 1}, writer("a", calls))
    second = cache.entry("s", "1", {"x": 1}, writer("a", calls))
    assert calls == ["a"]
    assert (first.cached, second.cached) == (False, True)
    assert second.path == first.path
    assert (second.path / "value.txt").read_text() == "a"
    assert second.cost == first.cost
    assert second.cost.tokens == 7


@pytest.mark.parametrize("changed", [("t", "1", {"x": 1}), ("s", "2", {"x": 1}), ("s", "1", {"x": 2})])
def test_stage_version_and_inputs_each_make_another_key(tmp_path, changed):
    cache, calls = StageCache(tmp_path), []
    first = cache.entry("s", "1", {"x": 1}, writer("a", calls))
    assert cache.entry(*changed, writer("b", calls)).key != first.key


def test_keys_do_not_depend_on_the_order_of_inputs():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_an_input_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(TypeError):
        StageCache(tmp_path).entry("s", "1", {"x": object()}, writer("a", []))


def test_a_failing_stage_leaves_nothing_behind(tmp_path):
    def fail(out: Path) -> int:
        (out / "half.txt").write_text("half")
        raise RuntimeError("no")

    cache = StageCache(tmp_path)
    with pytest.raises(RuntimeError):
        cache.entry("s", "1", {}, fail)
    assert [p for p in (tmp_path / "s").iterdir() if p.is_dir()] == []
    assert not cache.entry("s", "1", {}, writer("a", [])).cached


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "no manifest", "not json object"])
def test_a_damaged_entry_is_computed_again_and_says_so(tmp_path, caplog, damage):
    cache, calls = StageCache(tmp_path), []
    path = cache.entry("s", "1", {}, writer("abc", calls)).path
    file = path / "value.txt"
    match damage:
        case "flip":
            file.write_text("abd")
        case "truncate":
            file.write_text("ab")
        case "remove":
            file.unlink()
        case "manifest":
            (path / MANIFEST).write_text("{")
        case "no manifest":
            (path / MANIFEST).unlink()
        case "not json object":
            (path / MANIFEST).write_text("[]")
    again = cache.entry("s", "1", {}, writer("abc", calls))
    assert calls == ["abc", "abc"]
    assert not again.cached
    assert file.read_text() == "abc"
    assert "damaged" in caplog.text
    assert cache.entry("s", "1", {}, writer("abc", calls)).cached


def _slow(root: Path, log: Path, seconds: float) -> None:
    def compute(out: Path) -> int:
        with log.open("a") as handle:
            handle.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        (out / "pid").write_text(str(os.getpid()))
        return 0

    StageCache(root).entry("s", "1", {}, compute)


def _start(*args) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=_slow, args=args)
    process.start()
    return process


def test_of_two_jobs_one_computes_and_the_other_waits(tmp_path):
    log = tmp_path / "log"
    jobs = [_start(tmp_path, log, 1.0) for _ in range(2)]
    for process in jobs:
        process.join(60)
        assert process.exitcode == 0
    assert len(log.read_text().split()) == 1


def test_a_killed_holders_lock_is_taken_over(tmp_path):
    log = tmp_path / "log"
    holder = _start(tmp_path, log, 120.0)
    while not log.exists():
        time.sleep(0.05)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    heir = _start(tmp_path, log, 0.0)
    heir.join(60)
    assert heir.exitcode == 0
    assert len(log.read_text().split()) == 2


def test_the_manifest_tells_what_the_entry_rests_on(tmp_path):
    entry = StageCache(tmp_path).entry("s", "3", {"x": [1, "two"]}, writer("a", []))
    manifest = json.loads((entry.path / MANIFEST).read_text())
    assert manifest["stage"] == "s"
    assert manifest["version"] == "3"
    assert manifest["inputs"] == {"x": [1, "two"]}
    assert set(manifest["files"]) == {"value.txt", "sub/more.bin"}


def test_peak_memory_is_this_programs_and_not_its_parents():
    code = "from suite.machine import peak_memory_mb; print(peak_memory_mb())"
    small = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    ballast = bytearray(300 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])  # resident
    assert peak_memory_mb() > 300
    again = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert again < small + 100
