"""What an unfinished stage keeps: sound or not there; and the cache's tidying up after jobs that were killed."""

import errno
import logging

import pytest

from eval.errors import KeelBenchError
from suite.storage.cache import StageCache
from suite.storage.durable import replace_text
from suite.storage.unfinished import Unfinished, without_checksum


class Killed(BaseException):
    pass


def write(text: str):
    return lambda path: path.write_text(text)


def test_what_is_kept_comes_back_in_order_under_its_name(tmp_path):
    kept = Unfinished(tmp_path / "stage-key")
    for number in (2, 0, 1):
        kept.keep(f"part-{number}.txt", write(f"text {number}"))
    found = Unfinished(tmp_path / "stage-key").sound("part-")
    assert [f.read_text() for f in found] == ["text 0", "text 1", "text 2"]
    assert [without_checksum(f) for f in found] == ["part-0.txt", "part-1.txt", "part-2.txt"]
    assert kept.sound("other-") == []


@pytest.mark.parametrize("damage", [b"text 7", b"text", b""])
def test_a_damaged_file_is_removed_and_told(tmp_path, caplog, damage):
    kept = Unfinished(tmp_path)
    whole, broken = kept.keep("part-0.txt", write("text 0")), kept.keep("part-1.txt", write("text 1"))
    broken.write_bytes(damage)
    assert kept.sound("part-") == [whole]
    assert not broken.exists()
    assert "is damaged" in caplog.text


def test_a_write_that_was_cut_short_leaves_nothing_that_counts(tmp_path):
    kept = Unfinished(tmp_path)

    def cut(path):
        path.write_text("half")
        raise Killed

    with pytest.raises(Killed):
        kept.keep("part-0.txt", cut)
    (tmp_path / "fresh.txt").write_text("left between two renames")
    assert kept.sound("part-") == []


def test_no_room_to_keep_is_told_and_survived(tmp_path, caplog):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert Unfinished(tmp_path).keep("part-0.txt", full) is None
    assert "no room to keep part-0.txt" in caplog.text
    with pytest.raises(ValueError, match="other"):
        Unfinished(tmp_path).keep("part-0.txt", lambda path: (_ for _ in ()).throw(ValueError("other")))


def test_replacing_a_text_never_shows_half_of_it(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    replace_text(path, "old")
    monkeypatch.setattr("os.replace", lambda a, b: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        replace_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def stage(calls: list[str], die: bool = False):
    def compute(out, unfinished):
        calls.extend(f.read_text() for f in unfinished.sound("part-"))
        unfinished.keep(f"part-{len(calls)}.txt", write(f"part {len(calls)}"))
        if die:
            raise Killed
        (out / "whole.txt").write_text("whole")
        return 5

    return compute


def test_a_stage_finds_what_it_kept_and_leaves_nothing_when_it_is_done(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cache, calls = StageCache(tmp_path), []
    with pytest.raises(Killed):
        cache.resumable_entry("s", "1", {}, stage(calls, die=True))
    entry = cache.resumable_entry("s", "1", {}, stage(calls))
    assert calls == ["part 0"]
    assert "computing, from where an earlier job was stopped" in caplog.text
    assert entry.cost.tokens == 5
    assert list((tmp_path / "unfinished").iterdir()) == []
    assert sorted(f.name for f in entry.path.iterdir()) == ["manifest.json", "whole.txt"]


def test_the_cost_counts_the_time_before_the_kill(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    cache = StageCache(tmp_path)

    def compute(out, unfinished):
        clock[0] += 10
        unfinished.keep("part.txt", write("x"))
        clock[0] += 3
        if not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise Killed
        return 0

    with pytest.raises(Killed):
        cache.resumable_entry("s", "1", {}, compute)
    assert cache.resumable_entry("s", "1", {}, compute).cost.seconds == 10 + 13  # what came after the last part is lost


def test_what_a_killed_job_left_is_removed_by_the_next_one_only_for_its_key(tmp_path):
    cache = StageCache(tmp_path)
    mine, other = cache.key("s", "1", {}), cache.key("s", "1", {"x": 1})
    for name in (f".{mine}-abc", f".{mine}-damaged-x", f".{other}-abc"):
        (tmp_path / "s" / name).mkdir(parents=True)
        (tmp_path / "s" / name / "half").write_text("half")
    cache.entry("s", "1", {}, lambda out: 0)
    assert {f.name for f in (tmp_path / "s").iterdir() if f.is_dir()} == {mine, f".{other}-abc"}


def test_a_job_killed_while_tidying_up_leaves_nothing_for_ever(tmp_path):
    cache = StageCache(tmp_path)
    cache.entry("s", "1", {}, lambda out: 0)
    left = Unfinished(cache.unfinished("s", cache.key("s", "1", {})))
    left.keep("part.txt", write("x"))
    assert cache.entry("s", "1", {}, lambda out: 0).cached
    assert not left.folder.exists()


def test_looking_without_the_lock_removes_nothing(tmp_path, caplog):
    """Another job may have put a sound entry in a damaged one's place between the look and the removal."""
    cache = StageCache(tmp_path)
    entry = cache.entry("s", "1", {}, lambda out: (out / "a").write_text("abc"))
    (entry.path / "a").write_text("abd")
    assert cache.find("s", entry.key) is None
    assert "damaged" in caplog.text
    assert (entry.path / "a").read_text() == "abd"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EFBIG, "too large"),
                                   RuntimeError("I/O error: No space left on device (os error 28)")])  # fmt: skip
def test_a_full_disk_is_one_clear_message(tmp_path, error):
    def compute(out):
        raise error

    with pytest.raises(KeelBenchError, match=r"no room on the disk of .*; make some, and the same command goes on"):
        StageCache(tmp_path).entry("s", "1", {}, compute)
    assert [p for p in (tmp_path / "s").iterdir() if p.is_dir()] == []
