"""The documents' Python examples run, in order, in one namespace; blocks that need trl only where trl is."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```python( trl)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", ["purify_python.md"])
def test_the_examples_run(document, smollm2_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    text = (ROOT / "docs" / document).read_text()
    text = text.replace('"HuggingFaceTB/SmolLM2-135M-Instruct"', repr(str(smollm2_folder)))
    blocks = FENCE.findall(text)
    assert len(blocks) >= 6
    namespace: dict = {"__name__": "example"}
    for needs_trl, code in blocks:
        if needs_trl and importlib.util.find_spec("trl") is None:
            continue
        exec(compile(code, document, "exec"), namespace)
    sources = list(namespace["parts"]["dropped"]["source"])
    assert sources.count("planted") >= 3  # of 6, 1.5 by chance: what the document is about works
