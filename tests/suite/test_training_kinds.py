"""LoRA, QLoRA and full fine-tuning as stages: keys that did not move, whole models, what is refused."""

from dataclasses import replace

import pytest
import torch

from baselines import Sample, get_method
from baselines.regularizer import build_regularizer
from eval.errors import KeelBenchError
from eval.records import Completion, Prompt
from suite.plan import LoraRecipe, Recipe
from suite.stages.finetuning import fine_tune_selection
from suite.stages.generation import complete
from suite.stages.inference import Inference
from suite.stages.models import LoadedModel, Weights, load
from suite.stages.training_ranks import check_training
from suite.storage.cache import StageCache
from tests.helpers import COMPUTE, SMOLLM2, plan, tiny_model

SAMPLES = [Sample.of(f"Say the word number {i}", f"word {i}") for i in range(4)]
QUICK = ["train.batch_size=2", "train.accumulation=1", "train.epochs=1", "train.learning_rate=0.01"]
NONE = build_regularizer("none", {})


@pytest.fixture
def model(tokenizer, tmp_path) -> LoadedModel:
    folder = tmp_path / "tiny"
    tiny_model("llama").bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LoadedModel(Weights(folder, "tiny"), SMOLLM2, COMPUTE)


def test_the_recipes_and_what_their_keys_know():
    lora, qlora, full = (plan(None, f"train={name}").train for name in ("lora", "qlora", "full"))
    assert isinstance(lora, LoraRecipe)
    assert set(lora.identity()) == {
        "rank", "alpha", "dropout", "target_modules", "learning_rate", "epochs", "batch_size", "accumulation",
        "warmup_ratio", "schedule", "weight_decay", "max_grad_norm", "max_length",
    }  # fmt: skip # and nothing else: adapters in caches of before keep their keys
    assert qlora.identity() == {**lora.identity(), "quantization": "nf4"}
    assert type(full) is Recipe
    assert full.learning_rate == 2e-5


def test_full_fine_tuning_keeps_a_whole_model_and_back_ends_load_it(model, tmp_path, monkeypatch):
    recipe, cache = plan(None, "train=full", *QUICK).train, StageCache(tmp_path / "cache")
    result = fine_tune_selection(model, SAMPLES, recipe, regularizer=NONE, seed=1, cache=cache)
    assert result.whole
    assert result.entry.stage == "tuned_model"
    assert (result.folder / "tokenizer.json").is_file()
    with Inference(model, plan().backend) as inference:
        after, _ = inference.transformers(result)
    before, _ = load(model.weights.folder, model.spec, model.compute)
    assert after.dtype == torch.bfloat16
    moved = [
        n for (n, p), q in zip(after.named_parameters(), before.parameters(), strict=True) if not torch.equal(p, q)
    ]
    assert any("embed_tokens" in n for n in moved)
    assert any("mlp.up_proj" in n for n in moved)
    assert fine_tune_selection(model, SAMPLES, recipe, regularizer=NONE, seed=1, cache=cache).entry.cached

    given = []

    class Engine:
        def __init__(self, folder, adapters, **options):
            given.append((folder, adapters, options["tensor_parallel_size"]))

        def generate(self, prompts, *, adapter, **options):
            assert adapter is None
            return [Completion(p.id, "Yes.", 2, "stop") for p in prompts]

        def close(self):
            pass

    monkeypatch.setattr("eval.vllm_engine.VllmEngine", Engine)
    run = plan(None, "backend=vllm", "backend.tensor_parallel_size=4")
    prompts = {"asked": [Prompt("1", "asked", "Hello?", "", "comply")]}
    complete(model, result, prompts, evaluation=run.evaluation, backend=run.backend, cache=cache)
    assert given == [(result.folder, (), 4)]


def test_gradient_checkpointing_changes_nothing(model, tmp_path):
    recipe, adapters = plan(None, *QUICK).train, []
    for checkpointing in (False, True):
        mine = LoadedModel(model.weights, model.spec, replace(COMPUTE, gradient_checkpointing=checkpointing))
        cache = StageCache(tmp_path / str(checkpointing))
        result = fine_tune_selection(mine, SAMPLES, recipe, regularizer=NONE, seed=1, cache=cache)
        adapters.append((result.key, (result.folder / "adapter_model.safetensors").read_bytes()))
    assert adapters[0] == adapters[1]


def test_a_device_map_gives_the_same_model(model):
    pytest.importorskip("accelerate")
    mapped, _ = load(model.weights.folder, model.spec, replace(COMPUTE, device_map="auto"))
    plain, _ = load(model.weights.folder, model.spec, COMPUTE)
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        assert torch.equal(mapped(ids).logits, plain(ids).logits)


def test_a_device_map_that_spreads_reads_each_block_where_it_belongs(tokenizer, tmp_path, monkeypatch):
    """Memory for a part of the model alone: accelerate leaves the rest on the disk, its second device here."""
    accelerate = pytest.importorskip("transformers.integrations.accelerate")
    folder = tmp_path / "tiny"
    tiny_model("llama", tied=False, layers=4).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    plain, _ = load(folder, SMOLLM2, COMPUTE)
    matrix, block = (sum(p.nbytes for p in m.parameters()) for m in (plain.lm_head, plain.model.layers[0]))
    room = 2 * matrix + 2.5 * block  # the embedding, two blocks, and place to bring the largest of the others to
    monkeypatch.setattr(accelerate, "get_max_memory", lambda asked=None: {"cpu": room})
    mapped, _ = load(folder, SMOLLM2, replace(COMPUTE, device_map="auto"))
    places = mapped.hf_device_map
    assert {places["model.embed_tokens"], places["model.layers.1"]} == {"cpu"}
    assert {places["model.layers.2"], places["model.layers.3"], places["lm_head"]} == {"disk"}
    assert mapped.model.layers[3].mlp.up_proj.weight.device.type == "meta"
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        assert torch.equal(mapped(ids).logits, plain(ids).logits)
    samples = [Sample.of("Name a river.", "Rhine.")]
    scores = [get_method("larf")(layer=3).score(model, tokenizer, samples).score for model in (mapped, plain)]
    assert scores[0] == scores[1]


def test_qlora_without_its_library_is_refused(monkeypatch):
    recipe = plan(None, "train=qlora").train
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(KeelBenchError, match=r"bitsandbytes: pip install 'keelbench\[qlora\]'"):
        check_training(recipe, COMPUTE, NONE)


def test_qlora_trains_an_adapter_on_four_bit_weights(model, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: QLoRA was not run")
    recipe, cache = plan(None, "train=qlora", *QUICK, "train.epochs=4").train, StageCache(tmp_path / "cache")
    quantised, _ = load(model.weights.folder, model.spec, COMPUTE, quantization="nf4")
    weight = quantised.model.layers[0].mlp.up_proj.weight
    assert type(weight).__name__ == "Params4bit"
    assert weight.quant_state.quant_type == "nf4"
    assert weight.quant_state.nested
    result = fine_tune_selection(model, SAMPLES, recipe, regularizer=NONE, seed=1, cache=cache)
    assert not result.whole
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]
    with Inference(model, plan(None, "backend.merge_adapter=true").backend) as inference:
        answered, _ = inference.transformers(result)  # the adapter in the unquantised model
    assert answered.dtype == torch.bfloat16
