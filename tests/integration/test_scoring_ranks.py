"""Guards scoring over several processes: torchrun's ranks, gloo instead of NCCL, give what one process gives."""

from dataclasses import replace

import numpy as np
import pytest

from baselines import Sample, get_method
from eval.errors import KeelBenchError
from suite.stages.models import load
from suite.stages.scoring_ranks import Job, processes, score_over_processes
from tests.helpers import COMPUTE, SMOLLM2

SAMPLES = [Sample.of(f"Name {n} rivers.", "Rhine, Danube, Volga, Elbe, Oder."[: 6 * n]) for n in range(1, 6)]


@pytest.fixture
def job(smollm2_folder) -> Job:
    spec = replace(SMOLLM2, dtype="float32")
    compute = replace(COMPUTE, threads=1)
    return Job(
        method=get_method("larf")(layer=5), samples=SAMPLES, weights=smollm2_folder, spec=spec, compute=compute, seed=0
    )


def test_two_processes_give_one_processs_scores_in_the_datas_order(job):
    one = job.method.score(*load(job.weights, job.spec, job.compute), SAMPLES)
    two = score_over_processes(job, 2)
    assert two.ids == one.ids
    assert np.abs(two.score - one.score).max() < 1e-5
    assert two.components.keys() == one.components.keys()
    assert two.info["layer"] == 5


def test_a_ranks_error_is_the_methods_own(job):
    with pytest.raises(KeelBenchError, match="larf: layer 99 of a model with 30 blocks"):
        score_over_processes(replace(job, method=get_method("larf")(layer=99)), 2)


def test_a_process_that_dies_is_told_with_its_last_words(job, tmp_path):
    with pytest.raises(KeelBenchError, match=r"(?s)larf: a scoring process died \(status 1\).*"):
        score_over_processes(replace(job, weights=tmp_path / "nothing"), 2)


def test_how_many_processes():
    larf, seal = get_method("larf")(layer=5), get_method("seal")()
    assert processes(3, larf) == 3
    assert processes("auto", larf) >= 1
    assert processes(3, seal) == 1  # a bilevel optimisation over all samples
    with pytest.raises(KeelBenchError, match="scoring_processes=0"):
        processes(0, larf)
