"""``python -m suite.judge_audit``: several judges on the same completions; do they agree, and are they right?

python -m suite.judge_audit run=runs/<sweep>/<job> +judge@judges.guard=llama_guard
python -m suite.judge_audit labelled=xstest_completions.csv columns.label=final_label columns.category=type
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from suite.entry import enter
from suite.paths import conf_dir
from suite.preflight.start import before_run
from suite.sweep import carry_out, told_failures


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="judge_audit")
def _hydra(config: DictConfig) -> None:
    carry_out(config, _work)


def _work(values: dict[str, Any], folder: Path, sweep: str) -> str:
    from suite.auditing.plan import audit_plan
    from suite.auditing.run import run

    return run(audit_plan(values), folder)


def _summarise(sweep: Path) -> bool:
    return not told_failures(sweep)


def main() -> int:
    """Exit status: 0, or 1 where the audit or a check before it failed, or 2 where the command line was wrong."""
    return enter(_hydra, _summarise, preflight=partial(before_run, entry_point="judge_audit"))


if __name__ == "__main__":
    sys.exit(main())
