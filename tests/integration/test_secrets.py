"""One run with planted secrets, a home and a working folder of its own: what it wrote, and where."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "OPENAI_API_KEY": "sk-planted-4b1d",
    "WANDB_API_KEY": "91planted7c" * 4,
    "HF_TOKEN": "hf_planted2f8a",
    "ANTHROPIC_API_KEY": "sk-ant-planted-77",
}
# What libraries keep of their own accord under the home, none of it the run's: fonts, W&B's own log.
LIBRARIES = re.compile(r"\.(cache|config)/(matplotlib|wandb|huggingface|torch)/")


@pytest.fixture(scope="module")
def world(tmp_path_factory, smollm2_folder):
    """The folders ``home``, ``tmp``, ``cwd``, ``cache``, ``runs`` after a run; and what the run printed."""
    world = tmp_path_factory.mktemp("world")
    for name in ("home", "tmp", "cwd", "cache"):
        (world / name).mkdir()
    (world / "cache" / "model").symlink_to(smollm2_folder.parent)
    rows = "".join(f'{{"instruction": "Count to {i}", "output": "{i} is a number"}}\n' for i in range(12))
    (world / "home" / "mine.jsonl").write_text(rows)
    done = subprocess.run(
        [sys.executable, "-m", "suite", "method=random", "model/align=none", "dataset=jsonl",
         f"dataset.path={world / 'home' / 'mine.jsonl'}", "selection.k=8", "train.epochs=1", "eval.limit=2",
         "eval.max_new_tokens=3", "tracking=offline", "benchmark=[mini_harmful]"],
        cwd=world / "cwd",
        env={**os.environ, **SECRETS, "HOME": str(world / "home"), "TMPDIR": str(world / "tmp"),
             "PYTHONPATH": str(ROOT), "SUITE_CACHE": str(world / "cache"), "SUITE_RUNS": str(world / "runs")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return world, done.stdout + done.stderr


def written(world: Path, *names: str) -> list[Path]:
    return [f for name in names for f in (world / name).rglob("*") if f.is_file()]


def held(file: Path) -> str:
    """A file's bytes, and a table's cells."""
    text = file.read_bytes().decode("utf-8", errors="replace")
    if file.suffix == ".parquet":
        text += str(pq.read_table(file).to_pydict())
    return text


def test_no_secret_is_written_or_printed(world):
    folder, printed = world
    files = written(folder, "home", "tmp", "cwd", "cache", "runs")
    kinds = {f.suffix for f in files}
    assert {".parquet", ".json", ".html", ".wandb", ".yaml", ".log"} <= kinds
    for file in files:
        text = held(file)
        for name, secret in SECRETS.items():
            assert secret not in text, (file, name)
    for secret in SECRETS.values():
        assert secret not in printed


def test_the_home_is_named_only_where_the_command_line_is_kept(world):
    """Hydra's copy of the command line and the status hold what was typed; nothing that is shown or sent does."""
    folder, _ = world
    home = str(folder / "home")
    naming = {f.name for f in written(folder, "cache", "runs") if home in held(f)}
    assert naming <= {"config.yaml", "overrides.yaml", "hydra.yaml", "status.json"}
    (report,) = (folder / "runs").glob("*/report.html")
    assert "dataset.path=…/mine.jsonl" in report.read_text()


def test_files_are_written_only_below_the_runs_and_the_cache(world):
    folder, _ = world
    assert list((folder / "cwd").iterdir()) == []
    assert written(folder, "tmp") == []
    strange = [
        str(f.relative_to(folder / "home"))
        for f in written(folder, "home")
        if f.name != "mine.jsonl" and not LIBRARIES.match(str(f.relative_to(folder / "home")))
    ]
    assert strange == []
