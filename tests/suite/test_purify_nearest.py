"""Nearest anchors: an anchor's own text is nearest to itself, wherever it is read; and only looked up once."""

from types import SimpleNamespace

import pytest

from baselines import get_method
from baselines.anchors import load_anchors
from baselines.method import Engine
from baselines.records import Sample
from suite.purify.nearest import _nearest, nearest_anchors
from suite.storage.cache import StageCache
from tests.helpers import COMPUTE


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_an_anchors_own_text_is_nearest_to_it(tiny_llama, layer):
    anchors = load_anchors()[:12]
    samples = [Sample.of(a.instruction, a.compliance) for a in reversed(anchors)]
    places, likeness = _nearest(samples, anchors, SimpleNamespace(get=lambda: tiny_llama), layer, Engine())
    assert places.tolist() == list(range(11, -1, -1))
    assert likeness == pytest.approx([1] * 12, abs=1e-4)


def test_it_is_a_stage_read_where_larf_reads(tiny_llama, tmp_path):
    asked = []

    def get():
        asked.append(1)
        return tiny_llama

    spec = SimpleNamespace(dtype="float32", attention="eager")
    model = SimpleNamespace(get=get, spec=spec, weights=SimpleNamespace(key="k"))
    samples = [Sample.of("Say hello", "Hello"), Sample.of(load_anchors()[3].instruction, load_anchors()[3].compliance)]

    def find(**methods):
        return nearest_anchors(samples, methods, model, compute=COMPUTE, cache=StageCache(tmp_path))  # type: ignore[arg-type]

    larf, gradsafe = get_method("larf")(layer=1), get_method("gradsafe")()
    found, entries = find(gradsafe=gradsafe, larf=larf)
    assert found[samples[1].id].anchor == load_anchors()[3]
    assert set(found) == {s.id for s in samples}
    assert find(larf=larf)[1][0].key == entries[0].key
    assert len(asked) == 1
    assert find(gradsafe=gradsafe)[1][0].key != entries[0].key  # the last block
    assert find(length=get_method("length")()) == ({}, [])
