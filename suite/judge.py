"""``python -m suite.judge RUN judge=NAME``: another judge on the stored completions of finished runs.

python -m suite.judge runs/2026-05-01_12-00-00/0 judge=llama_guard       # one run
python -m suite.judge runs/2026-05-01_12-00-00 judge=rubric              # every run of a sweep
python -m suite.judge RUN judge=rubric judge.server=http://localhost:8000/v1 judge.key_variable=null judge.model=NAME

Verdicts come to lie in ``RUN/judged/<judge>/``, rates join the run's record under that judge's name; what the run's own
judge said stays as it is.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from eval.errors import KeelBenchError


def main() -> int:
    """Exit status: 0, 1 where a run could not be judged, 2 where the command line was wrong."""
    about = __doc__ or ""
    parser = argparse.ArgumentParser(
        prog="python -m suite.judge", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run, or of a sweep: then all its finished runs")
    parser.add_argument(
        "overrides", nargs="+", metavar="judge=NAME", help="the judge, and settings such as judge.model=…"
    )
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    for noisy in ("httpx", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        values = _composed(options.overrides)
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        _judge_all(options.run, values)
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _composed(overrides: list[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from suite.configuration.overrides import check_names
    from suite.paths import conf_dir

    check_names(overrides, Path(conf_dir()))
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            values = OmegaConf.to_container(compose("rejudge", overrides=overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise KeelBenchError(str(error)) from error
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def _judge_all(folder: Path, values: dict[str, Any]) -> None:
    from suite.judging.rejudging import print_rates, rejudge
    from suite.plan import judge_of, paths_spec, refuse_unknown
    from suite.stages.judging import with_weights
    from suite.storage.cache import StageCache

    refuse_unknown(values, {"judge", "compute", "paths"}, "setting")
    runs = sorted(f.parent for f in folder.rglob("record.json"))
    if not runs:
        raise KeelBenchError(f"no finished run in {folder}")
    judge = with_weights(judge_of(values["judge"]))
    judge.check()
    cache = StageCache(paths_spec(values["paths"]).cache)
    print_rates([rejudge(run, judge, cache) for run in runs])


if __name__ == "__main__":
    sys.exit(main())
