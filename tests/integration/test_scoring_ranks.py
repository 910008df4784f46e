"""Guards scoring over several processes: torchrun's ranks, gloo instead of NCCL, give what one process gives."""

from dataclasses import replace

import numpy as np
import pytest

from baselines import Sample, get_method
from eval.errors import KeelBenchError
from suite.stages.data import load_data
from suite.stages.models import LoadedModel, load, prepare
from suite.stages.ranks import run_over_processes
from suite.stages.score_files import read_scores
from suite.stages.scoring import score
from suite.stages.scoring_ranks import Job, processes, score_over_processes
from suite.storage.cache import StageCache
from tests.helpers import COMPUTE, SMOLLM2, plan, tiny_model
from tests.integration import full_rank

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


def test_what_does_not_fit_one_ranks_memory_is_told_to_the_run(tokenizer, tmp_path, monkeypatch):
    """Rank 1 halves its batches; scores, order and the stage's record of it are those of one process. (On a CPU by
    ``compute.device=auto``, under which each process once took itself for the only one.)"""
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = plan(
        tmp_path, f"model.source={folder}", "model/align=none", "model.dtype=float32", "model.attention=sdpa",
        "method=larf", "method.layer=1", "dataset.limit=12", "compute.threads=1", "compute.max_length=256",
    )  # fmt: skip
    data = load_data(made.dataset, None)

    def scored(compute, cache):
        model = LoadedModel(prepare(made.model, compute, cache), made.model, compute)
        return score(made.method, model, data, seed=0, compute=compute, cache=cache)

    def over_processes(job, count):
        return run_over_processes(full_rank.__name__, job, read_scores, count, what="a scoring")

    monkeypatch.setattr("suite.stages.scoring.score_over_processes", over_processes)
    one = scored(made.compute, StageCache(tmp_path / "one"))
    cache = StageCache(tmp_path / "two")
    two = scored(replace(made.compute, scoring_processes=2), cache)
    assert one.entries[0].shrunk == ()
    shrunk = two.entries[0].shrunk
    assert shrunk
    assert {event.what.partition(" (")[2] for event in shrunk} == {"rank 1)"}
    assert all(event.tokens > full_rank.TOKENS and event.budget == event.tokens // 2 for event in shrunk)
    found = cache.find("scores", two.entries[0].key)
    assert found is not None
    assert found.shrunk == shrunk  # in the manifest, from where the run's row takes it
    assert two.scores.ids == one.scores.ids
    assert np.abs(two.scores.score - one.scores.score).max() < 1e-5


def test_how_many_processes():
    larf, seal = get_method("larf")(layer=5), get_method("seal")()
    assert processes(3, larf) == 3
    assert processes("auto", larf) >= 1
    assert processes(3, seal) == 1  # a bilevel optimisation over all samples
    with pytest.raises(KeelBenchError, match="scoring_processes=0"):
        processes(0, larf)
