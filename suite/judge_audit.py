"""``python -m suite.judge_audit``: several judges on the same completions; do they agree, and are they right?

python -m suite.judge_audit run=runs/<sweep>/<job> +judge@judges.guard=llama_guard
python -m suite.judge_audit labelled=xstest_completions.csv columns.label=final_label columns.category=type
"""

import os
import sys
from pathlib import Path
from typing import Any

# Before torch is imported: OpenMP threads that spin at barriers are ten times slower on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hydra
from omegaconf import DictConfig

from eval.errors import KeelBenchError
from suite.overrides import check_names
from suite.paths import conf_dir
from suite.sweep import SweepFolder, carry_out, told_failures


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="judge_audit")
def _hydra(config: DictConfig) -> None:
    carry_out(config, _work)


def _work(values: dict[str, Any], folder: Path, sweep: str) -> str:
    from suite.auditing.plan import audit_plan
    from suite.auditing.run import run

    return run(audit_plan(values), folder)


def main() -> int:
    """Exit status: 0, or 1 where the audit failed, or 2 where the command line was wrong."""
    try:
        check_names(sys.argv[1:], Path(conf_dir()))
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _hydra()
    if SweepFolder.path is None:  # --help, --cfg and their like ran no job
        return 0
    return 1 if told_failures(SweepFolder.path) else 0


if __name__ == "__main__":
    sys.exit(main())
