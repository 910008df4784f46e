"""The report over 500 runs with 200,000 completions: under 20 s, 1.5 GB and 10 MB of HTML (its issue's targets)."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.common import ROOT, print_table
from tests.suite.fake_sweep import Point, fake_sweep

SEEDS = (1, 2, 3, 4, 5)
POINTS, PROMPTS, SAMPLES = 100, 200, 1000  # 100 points × 5 seeds, 2 × 200 prompts each


def store(root: Path, points: int = POINTS) -> Path:
    """A sweep of ``points`` × 5 runs: the un-tuned model, random choice, and methods of all strengths."""
    made = [Point("none", seed=s, asr=0.06, over=0.35) for s in SEEDS]
    made += [Point("random", "random", "top", seed=s, asr=0.4, over=0.2) for s in SEEDS]
    for i in range(2, points):
        method, selection = ("larf", "random")[i % 2], ("top", "bottom", "drop_top")[i % 3]
        rates = {"asr": 0.1 + 0.7 * i / points, "over": 0.35 - 0.3 * i / points}
        made += [Point(f"{method}-{selection}-{i}", method, selection, seed=s, **rates) for s in SEEDS]
    return fake_sweep(root, made, n_samples=SAMPLES, k=300, n_prompts=PROMPTS)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        sweep = store(Path(scratch))
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "suite.report", str(sweep)], cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        assert done.returncode == 0
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        size = (sweep / "report.html").stat().st_size / 1e6
        print_table(
            f"Report over {POINTS * len(SEEDS)} runs, {POINTS * len(SEEDS) * 2 * PROMPTS:,} completions",
            ("", "measured", "target"),
            (
                ("seconds", f"{seconds:.1f}", "20"),
                ("peak memory, MB", f"{memory:.0f}", "1500"),
                ("report.html, MB", f"{size:.1f}", "10"),
            ),
        )


if __name__ == "__main__":
    main()
