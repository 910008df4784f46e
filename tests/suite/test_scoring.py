"""Guards the scoring stage: what was interrupted goes on, and what a method learnt is kept with its scores."""

from dataclasses import replace
from pathlib import Path

import pytest

from baselines import Sample, get_method
from baselines.seal import load_selector
from baselines.seal.training import Bilevel
from suite.stages.data import Data
from suite.stages.models import LoadedModel, Weights
from suite.stages.scoring import score
from suite.storage.cache import StageCache
from tests.helpers import COMPUTE, SMOLLM2

SAMPLES = [Sample.of(f"Name {n} colours.", "Red, green, blue, white, black."[: 6 * n]) for n in range(1, 7)]


class Killed(BaseException):
    pass


@pytest.fixture
def model(tiny_llama, tmp_path):
    loaded = LoadedModel(Weights(tmp_path / "weights", "tiny"), replace(SMOLLM2, dtype="float32"), COMPUTE)
    loaded._loaded = tiny_llama
    return loaded


def test_a_killed_seal_goes_on_and_its_selector_lies_with_its_scores(model, tmp_path, monkeypatch):
    safe = tmp_path / "safe.jsonl"
    safe.write_text('{"instruction": "Do it.", "output": "I cannot help with that."}\n' * 3)
    seal = get_method("seal")(safe_data=str(safe), epochs=2, batch_size=2, checkpoint_every=1)
    data, seen = Data(SAMPLES, {}, "six"), []
    plain = Bilevel.step

    def step(self, *args):
        if len(seen) == 4:
            seen.append("killed")
            raise Killed
        seen.append("step")
        plain(self, *args)

    monkeypatch.setattr(Bilevel, "step", step)

    def run(folder: Path):
        return score(seal, model, data, seed=3, compute=COMPUTE, cache=StageCache(folder))

    with pytest.raises(Killed):
        run(tmp_path / "cache")
    resumed = run(tmp_path / "cache")
    assert seen == ["step"] * 4 + ["killed"] + ["step"] * 2  # three steps an epoch, two epochs
    assert not list((tmp_path / "cache" / "unfinished").iterdir())
    straight = run(tmp_path / "other")
    assert resumed.scores.score.tolist() == straight.scores.score.tolist()
    selector = load_selector(resumed.entries[0].path / "selector.safetensors")
    assert {i: -v for i, v in selector.items()} == pytest.approx(
        dict(zip(resumed.scores.ids, resumed.scores.score, strict=True))
    )
