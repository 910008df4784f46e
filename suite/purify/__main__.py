"""``python -m suite.purify``: a data set without the rows that would cost safety.

python -m suite.purify model=smollm2 dataset=jsonl dataset.path=mine.jsonl method=larf keep=0.8 out=clean.jsonl
python -m suite.purify dataset.path=mine.jsonl method=larf,gradsafe combine=union drop=2000 out=clean.jsonl
python -m suite.purify dataset.path=mine.jsonl keep=0.9 verify=true out=clean.jsonl
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from suite.entry import enter
from suite.paths import conf_dir
from suite.preflight.start import before_run
from suite.purify.arguments import translated
from suite.sweep import carry_out, told_failures


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="purify")
def _hydra(config: DictConfig) -> None:
    carry_out(config, _work)


def _work(values: dict[str, Any], folder: Path, sweep: str) -> str:
    from suite.purify.plan import purify_plan
    from suite.purify.run import run

    return run(purify_plan(values), folder, sweep)


def main() -> int:
    """Exit status: 0, or 1 where a run or a check before the first failed, or 2 where the command line was wrong."""
    return enter(_hydra, _summarise, translated, preflight=partial(before_run, entry_point="purify"))


def _summarise(sweep: Path) -> bool:
    """What went, what stayed, what to beware of, and where it lies.

    Returns:
        Whether every run finished.
    """
    for file in sorted(sweep.glob("*/purify.json")):
        _print(json.loads(file.read_text()))
    return not told_failures(sweep)


def _print(record: dict[str, Any]) -> None:
    from suite.purify.outputs import beside

    out = Path(record["out"])
    print(
        f"\n{record['rows']:,} rows in, {record['written']:,} out, {record['dropped']:,} dropped by their score → {out}"
    )
    for kind, count in record["bad"].items():
        fate = "kept unscored" if record["on_bad_row"] == "keep" else "left out"
        print(f"  {count:,} not scored ({kind}), {fate}")
    if record["duplicates_dropped"]:
        print(f"  {record['duplicates_dropped']:,} left out, equal to an earlier row")
    if record["outside_limit"]:
        print(f"  {record['outside_limit']:,} left out, outside dataset.limit")
    for name, method in record["methods"].items():
        rate = f", {method['rows_per_second']:.1f} rows/s" if method["rows_per_second"] else ""
        print(f"  {name}: {method['seconds']:.1f} s{rate}")
    for warning in record["warnings"]:
        print(f"WARNING {warning}")
    files = beside(out)
    print(f"Scores: {files['scores.parquet']} (and .csv)\nPage:   {files['report.html']}")


if __name__ == "__main__":
    sys.exit(main())
