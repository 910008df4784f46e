"""Faults injected into a real sweep: the same command goes on, and nothing is lost or other than it would have been."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from suite.status import progress
from suite.storage.cache import MANIFEST
from tests.integration.faults.killing import kill_at_random
from tests.integration.faults.launcher import ROOT, Launcher
from tests.integration.faults.small_sweep import (
    arguments,
    differences,
    leftovers,
    make_model,
    newest_sweep,
    only_sweep,
    rows_lost,
    states,
)

KILLS = 6  # `make faults` kills fifty times


@pytest.fixture(scope="module")
def launcher():
    with Launcher() as launcher:
        yield launcher


@pytest.fixture(scope="module")
def model(tmp_path_factory, smollm2_folder):
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def undisturbed(launcher, model, tmp_path_factory):
    """``(sweep, its cache)``; nobody changes either."""
    folder = tmp_path_factory.mktemp("undisturbed")
    attempt = launcher.sweep(arguments(model, folder / "cache", folder / "runs"), folder / "log")
    assert attempt.status == 0, attempt.output
    return only_sweep(folder / "runs"), folder / "cache"


def test_killed_at_random_moments_nothing_is_lost(launcher, model, tmp_path):
    outcome = kill_at_random(launcher, model, tmp_path, kills=KILLS, seed=3)
    assert outcome.kills == KILLS
    assert (outcome.rows_lost, outcome.different, outcome.left_behind, outcome.not_gone) == (0, [], [], [])


def test_a_killed_training_and_a_killed_generation_go_on_from_where_they_were(launcher, model, undisturbed, tmp_path):
    """Killed when the first checkpoint, and then the first batch of answers, is on disk."""
    log, cache, runs = tmp_path / "log", tmp_path / "cache", tmp_path / "runs"
    for kept in ("adapter-*/training-*", "completions-*/part-*"):
        pid = launcher.start(arguments(model, cache, runs), log)
        end = time.monotonic() + 120
        while not list((cache / "unfinished").glob(kept)) and time.monotonic() < end:
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        assert launcher.wait(pid, log).killed
        assert [job.state for job in progress(newest_sweep(runs)).jobs][-1] == "gone"
    attempt = launcher.sweep(arguments(model, cache, runs), log)
    assert attempt.status == 0, attempt.output
    assert "from where an earlier job was stopped" in attempt.output
    assert differences(newest_sweep(runs), undisturbed[0], tmp_path) == []
    assert leftovers(cache) == []


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(("damage", "which"), [(flip, "data"), (truncate, "data"), (flip, MANIFEST)])
def test_damaged_entries_of_every_stage_are_found_and_computed_again(
    launcher, model, undisturbed, tmp_path, damage, which
):
    import shutil

    sweep, whole = undisturbed
    cache = tmp_path / "cache"
    shutil.copytree(whole, cache)
    entries = [f.parent for f in cache.glob(f"*/*/{MANIFEST}")]
    for entry in entries:
        files = [f for f in entry.rglob("*") if f.is_file() and f.name != MANIFEST]
        damage(entry / MANIFEST if which == MANIFEST else max(files, key=lambda f: f.stat().st_size))
    attempt = launcher.sweep(arguments(model, cache, tmp_path / "runs"), tmp_path / "log")
    assert attempt.status == 0, attempt.output
    found = set(re.findall(r"(\w+) \[(\w+)\]: the cache entry is damaged .*; computing it again", attempt.output))
    assert {stage for stage, _ in found} == {"scores", "adapter", "checkpoints", "completions", "verdicts"}
    assert {key for _, key in found} == {entry.name[:8] for entry in entries}
    assert differences(only_sweep(tmp_path / "runs"), sweep, tmp_path) == []
    assert rows_lost(only_sweep(tmp_path / "runs"), sweep) == 0


def test_two_jobs_on_one_cache_compute_everything_once(launcher, model, undisturbed, tmp_path):
    """Started at the same time, from the same folder: one computes what the other waits for."""
    given = arguments(model, tmp_path / "cache", tmp_path / "runs")
    logs = [tmp_path / f"log-{i}" for i in range(2)]
    pids = [launcher.start(given, log) for log in logs]
    attempts = [launcher.wait(pid, log) for pid, log in zip(pids, logs, strict=True)]
    assert [a.status for a in attempts] == [0, 0], "".join(a.output for a in attempts)
    computed = Counter(key for a in attempts for key in re.findall(r"\[(\w{8})\]: computing", a.output))
    assert len(computed) == len(list((tmp_path / "cache").glob(f"*/*/{MANIFEST}")))
    assert set(computed.values()) == {1}
    sweeps = list((tmp_path / "runs").iterdir())  # of the same second, perhaps
    assert len(sweeps) == 2
    assert all(differences(sweep, undisturbed[0], tmp_path) == [] for sweep in sweeps)


def test_a_clock_that_is_put_back_changes_nothing(launcher, model, undisturbed, tmp_path):
    given = arguments(model, tmp_path / "cache", tmp_path / "runs")
    attempt = launcher.sweep(given, tmp_path / "log", clock="jumps")
    assert attempt.status == 0, attempt.output
    assert differences(only_sweep(tmp_path / "runs"), undisturbed[0], tmp_path) == []
    rows = [json.loads(f.read_text()) for f in only_sweep(tmp_path / "runs").glob("*/record.json")]
    assert len({row["finished"][:10] for row in rows}) >= 1
    assert all(value >= 0 for row in rows for name, value in row.items() if name.endswith("/seconds"))
    assert all(job.seconds >= 0 for job in progress(only_sweep(tmp_path / "runs")).jobs)


def test_files_that_may_not_grow_are_one_clear_message_and_the_same_command_goes_on(
    launcher, model, undisturbed, tmp_path
):
    """A limit on a file's size stands for a full disk where nothing can be mounted; the adapter does not fit."""
    given = arguments(model, tmp_path / "cache", tmp_path / "runs")
    attempt = launcher.sweep(given, tmp_path / "log", file_limit=30_000)
    assert attempt.status == 1
    assert "no room on the disk of" in attempt.output
    assert "Traceback" not in attempt.output
    assert set(states(newest_sweep(tmp_path / "runs")).values()) == {"failed"}
    attempt = launcher.sweep(given, tmp_path / "log")
    assert attempt.status == 0, attempt.output
    assert differences(newest_sweep(tmp_path / "runs"), undisturbed[0], tmp_path) == []
    assert leftovers(tmp_path / "cache") == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own: ``(folder, function that gives it another size)``."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kilobytes: int, *more: str) -> int:
        options = ",".join([f"size={kilobytes}k", *more])
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True).returncode

    if os.geteuid() != 0 or size(100) != 0:
        pytest.skip("nothing can be mounted here")
    yield folder, lambda kilobytes: size(kilobytes, "remount")
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_at_any_stage_and_the_same_command_goes_on(launcher, model, undisturbed, tmp_path, small_disk):
    disk, size = small_disk
    given = arguments(model, disk / "cache", tmp_path / "runs")
    failed = 0
    for kilobytes in (60, 250, 500, 800):
        assert size(kilobytes) == 0
        attempt = launcher.sweep(given, tmp_path / "log", preflight=False)  # which would have seen it coming
        assert attempt.status in (0, 1)
        assert "Traceback" not in attempt.output
        if attempt.status == 1:
            failed += 1
            assert "no room on the disk of" in attempt.output
    assert failed >= 2
    assert size(100_000) == 0
    attempt = launcher.sweep(given, tmp_path / "log")
    assert attempt.status == 0, attempt.output
    assert differences(newest_sweep(tmp_path / "runs"), undisturbed[0], tmp_path) == []
    assert leftovers(disk / "cache") == []


def test_a_full_disk_under_the_run_folders_is_never_taken_for_success(launcher, model, tmp_path, small_disk):
    disk, size = small_disk
    for kilobytes in (8, 40, 120):
        assert size(kilobytes) == 0
        attempt = launcher.sweep(arguments(model, tmp_path / "cache", disk / "runs"), tmp_path / "log")
        assert attempt.status == 1
    assert size(100_000) == 0
    attempt = launcher.sweep(arguments(model, tmp_path / "cache", disk / "runs"), tmp_path / "log")
    assert attempt.status == 0, attempt.output


def test_a_killed_worker_of_the_joblib_launcher_does_not_stop_the_sweep(model, undisturbed, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    given = arguments(model, tmp_path / "cache", tmp_path / "runs", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "suite", *map(str, given)], cwd=ROOT, stdout=log, stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        end = time.monotonic() + 200
        while not (found := list((tmp_path / "runs").glob("*/1/status.json"))) and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(json.loads(found[0].read_text())["pid"], signal.SIGKILL)
        status = process.wait(300)
    output = (tmp_path / "log").read_text()
    assert status == 0, output
    assert "were killed; going on with what is not finished" in output
    sweep = only_sweep(tmp_path / "runs")
    assert json.loads((sweep / "1" / "status.json").read_text())["state"] == "finished"
    assert differences(sweep, undisturbed[0], tmp_path) == []
