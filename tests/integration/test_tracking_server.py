"""Tracking against a server that is there, that is killed half-way, that was never there, and that comes back."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite.storage.tables import read_table
from suite.tracking.run import SYNCED
from tests.integration.openwandb import KEY, Server, install
from tests.integration.track_run import SPEC
from tests.suite.fake_sweep import DEMO, fake_sweep

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(cache_root, tmp_path_factory):
    program, reason = install(cache_root / "test-tools")
    if program is None:
        pytest.skip(reason)
    server = Server(program, tmp_path_factory.mktemp("openwandb") / "data")
    server.start()
    yield server
    server.kill()


def track(server: Server, folder: Path, *stop: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.track_run", str(folder), *map(str, stop)]
    log = (folder / "track.log").open("w")
    return subprocess.Popen(command, cwd=ROOT, env=server.environment, stdout=log, stderr=log, text=True)


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def of_sweep(server: Server) -> list[dict]:
    """The runs of ``sweep``, which share the server with the one of ``killed``."""
    return [run for run in server.runs(SPEC.project) if run["display_name"] != "killed"]


def waiting(sweep: Path) -> list[str]:
    """The folders of runs that have something to be sent."""
    files = sweep.rglob("wandb/*run-*/run-*.wandb")
    return sorted({f.relative_to(sweep).parts[0] for f in files if not f.with_suffix(SYNCED).exists()})


@pytest.fixture(scope="module")
def sweep(server, tmp_path_factory):
    """Four runs: one as it should be, one told to stop, one whose server is killed half-way, one that never has a
    server; and then the server is back and ``suite.sync`` has run: ``(folder, process of the sync, what it had to
    send)``."""
    sweep = fake_sweep(tmp_path_factory.mktemp("runs"), n_samples=60, k=20, n_prompts=16)
    stop = sweep.parent / "stop"
    assert track(server, sweep / "0").wait(120) == 0

    stopped = track(server, sweep / "1", stop)
    until(stop.exists)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(120) != 0
    stop.unlink()

    half = track(server, sweep / "2", stop)
    until(stop.exists)
    until(lambda: len(of_sweep(server)) == 3)
    server.kill()
    stop.unlink()
    assert half.wait(200) == 0  # the run ends well without its server

    assert track(server, sweep / "3").wait(200) == 0
    had = waiting(sweep)
    server.start()
    synced = subprocess.run(
        [sys.executable, "-m", "suite.sync", str(sweep)],
        cwd=ROOT, env=server.environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return sweep, synced, had


@pytest.fixture(scope="module")
def killed(server, tmp_path_factory):
    """A run killed by SIGKILL half-way and gone on with in its folder: ``(folder, what the server held of it before and
    after, what was to be sent before)``. Its label is another than those of the sweep's runs."""
    sweep = fake_sweep(tmp_path_factory.mktemp("killed"), n_samples=60, k=20, n_prompts=16)
    folder, stop = sweep / "2", sweep.parent / "stop"
    row = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(row | {"label": "killed"}))

    def held() -> list[tuple[str, str]]:
        runs = server.runs(SPEC.project)
        return [(run["run_id"], run["state"]) for run in runs if run["display_name"] == "killed"]

    job = track(server, folder, stop)
    until(stop.exists)
    until(held)
    job.kill()
    job.wait()
    stop.unlink()
    seen = [held()]
    left = waiting(sweep)
    assert track(server, folder).wait(200) == 0
    return folder, [*seen, held()], left


def test_a_killed_run_is_put_right_by_the_next_attempt_in_its_folder(killed, server):
    """W&B itself calls a run without heartbeats crashed; the double does not look for them."""
    folder, (before, after), left = killed
    assert left == ["2"]
    ((run_id, state),) = before
    assert state == "running"
    assert after == [(run_id, "finished")]
    assert waiting(folder.parent) == []  # nothing of the killed half is sent after the whole
    tables = server.tables(SPEC.project, run_id)
    assert tables["scores"] == read_table(folder / "scores.parquet")
    losses = server.get(f"/api/v2/runs/{run_id}/metrics")["metrics_by_key"]["train/loss"]
    assert [m["value"] for m in losses] == pytest.approx([p["loss"] for p in read_table(folder / "training.parquet")])


def test_what_the_server_missed_is_sent_later(sweep):
    folder, synced, had = sweep
    assert had == ["2", "3"]
    assert synced.returncode == 0, synced.stderr
    assert "2 runs to send" in synced.stdout
    assert waiting(folder) == []


def test_every_run_is_there_once(sweep, server):
    told = of_sweep(server)
    runs = {run["display_name"]: run for run in told}
    assert len(runs) == len(told) == 4
    assert set(runs) == {p.label for p in DEMO}
    assert {run["state"] for run in runs.values()} == {"finished"}  # the double knows no other end
    for run in runs.values():
        assert run["tags"] == ["tag"]
        assert run["notes"] == "a note"
        assert run["config"]["sweep"]["value"] == "2025-01-31_12-00-00"


def test_a_run_told_to_stop_is_marked_failed(sweep):
    """By its exit code, which W&B's server makes the state of: the client's own reader on what was sent."""
    codes = {}
    for number in "012":
        (folder,) = (f.parent for f in (sweep[0] / number).glob("wandb/run-*/run-*.wandb"))
        told = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(folder)],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        codes[number] = json.loads(told.stdout).get("exit_code")
    assert codes == {"0": 0, "1": 1, "2": 0}


def test_every_table_read_back_is_the_one_on_disk(sweep, server):
    folder, _, _ = sweep
    compared = 0
    for run in of_sweep(server):
        if run["display_name"] == "random":  # stopped before it had a table
            continue
        place = folder / str([p.label for p in DEMO].index(run["display_name"]))
        tables = server.tables(SPEC.project, run["run_id"])
        for name in ("completions", "scores"):
            if (place / f"{name}.parquet").exists():
                assert tables[name] == read_table(place / f"{name}.parquet")
                compared += 1
        row = json.loads((place / "record.json").read_text())
        assert tables["results"] == [row]
        # The numbers of the row are the run's summary, which dashboards compare by.
        assert run["summary"]["asr/mini_harmful"] == row["asr/mini_harmful"]
    assert compared == 5


def test_the_curve_is_there_once(sweep, server):
    folder, _, _ = sweep
    (run,) = [r for r in server.runs(SPEC.project) if r["display_name"] == "larf-top"]
    losses = server.get(f"/api/v2/runs/{run['run_id']}/metrics")["metrics_by_key"]["train/loss"]
    assert [m["value"] for m in losses] == pytest.approx([p["loss"] for p in read_table(folder / "2/training.parquet")])


def test_no_key_path_or_machine_is_told(sweep, server):
    folder, _, _ = sweep
    for file in folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    for run in server.runs(SPEC.project):
        told = json.dumps(run)
        for private in (str(folder), str(ROOT), str(Path.home()), sys.executable):
            assert private not in told
        assert run["host"] == "-"
        assert run["program"] in ("suite", "-m wandb.__main__")  # the latter where `wandb sync` sent it
