"""This machine: its devices, and the memory that a run needs of it."""

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from eval.errors import KeelBenchError
from suite.plan import BackendSpec, LoraRecipe, RunPlan, VllmSpec
from suite.preflight.findings import Finding
from suite.preflight.shapes import BYTES, Shape
from suite.stages.generation import check_backend

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int  # bytes


def gpus() -> list[Gpu]:
    """The GPUs that torch could use here, without importing it: by the driver's tool and CUDA_VISIBLE_DEVICES."""
    if shutil.which("nvidia-smi") is None or not torch_has_cuda():
        return []
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    found = [line.rsplit(",", 1) for line in told.splitlines() if "," in line]
    all_gpus = [Gpu(name.strip(), int(mib) << 20) for name, mib in found if mib.strip().isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return all_gpus
    numbers = [v.strip() for v in visible.split(",")]
    if all(n.isdigit() for n in numbers):
        return [all_gpus[int(n)] for n in numbers if int(n) < len(all_gpus)]
    return all_gpus[: len([n for n in numbers if n and n != "-1"])]  # by UUID


def torch_has_cuda() -> bool:
    """Whether torch was built for CUDA, read off its version file."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).parent / "version.py"
    return version.is_file() and re.search(r"^cuda\b.*=\s*['\"]", version.read_text(), re.MULTILINE) is not None


def check_device(asked: str, found: list[Gpu]) -> str:
    """
    Raises:
        KeelBenchError: a device that is not here.
    """
    kind, _, number = asked.partition(":")
    if kind == "auto":
        return f"{len(found)} × {found[0].name}" if found else f"{os.cpu_count()} CPU cores, no GPU"
    if kind == "cpu":
        return f"{os.cpu_count()} CPU cores"
    if kind != "cuda":
        return f"{asked}, as asked; not looked for"
    if number and not number.isdigit():
        raise KeelBenchError(f"compute.device={asked}: cuda, or cuda:<number>")
    if not torch_has_cuda():
        raise KeelBenchError(f"compute.device={asked}: this torch is built without CUDA; compute.device=cpu, or auto")
    if len(found) <= int(number or 0):
        raise KeelBenchError(f"compute.device={asked}: {len(found)} GPUs are visible here; compute.device=cpu, or auto")
    return found[int(number or 0)].name


def check_back_end(backend: BackendSpec | VllmSpec) -> str:
    """
    Raises:
        KeelBenchError: it is not installed.
    """
    check_backend(backend)
    return "installed"


def memory(plan: RunPlan, shape: Shape, judge: Shape | None, gpus: int = 0) -> dict[str, tuple[int, int]]:
    """``(bytes of weights, bytes at the peak)`` that each stage needs of one device, by a rough model (docs/doctor.md).

    Args:
        gpus: over which ``compute.device_map=auto`` and ``backend.tensor_parallel_size`` spread a model; 0 = none here.
    """
    width = BYTES.get(plan.model.dtype, 4)
    spread = max(1, gpus) if plan.compute.device_map == "auto" else 1
    whole = shape.parameters * width
    weights = whole // spread
    token = shape.blocks * width * (20 * shape.hidden + 8 * shape.intermediate)  # what backward keeps of one
    needs = {}
    if plan.method.fine_tunes:
        if isinstance(plan.train, LoraRecipe):
            frozen = whole if plan.train.quantization == "none" else shape.parameters // 2
            held = frozen + 16 * shape.lora_parameters(plan.train.rank, plan.train.target_modules)
        else:
            frozen, held = 4 * shape.parameters, 20 * shape.parameters  # float32 weights, gradients twice, two moments
        over = spread
        if plan.compute.training_sharding == "full" and isinstance(plan.compute.training_processes, int):
            over = plan.compute.training_processes
        kept = token
        if plan.compute.gradient_checkpointing:  # each block's input, and all of the block that is computed again
            kept = shape.blocks * width * shape.hidden + token // shape.blocks
        tokens = plan.compute.training_tokens_per_pass
        needs["fine-tuning"] = frozen // over, held // over + tokens * (kept // spread + 6 * shape.vocabulary)
    if plan.method.scores and plan.method.uses_model:
        forward = plan.compute.scoring_tokens_per_batch * width * (8 * shape.hidden + 4 * shape.intermediate)
        gradients = plan.method.name in ("gradsafe", "bi_anchoring", "seal")
        needs["scoring"] = (
            weights,
            weights * (2 if gradients else 1) + (2048 * token // spread if gradients else forward),
        )
    cached = 2 * shape.blocks * shape.keys * width  # keys and values of one token
    if isinstance(plan.backend, BackendSpec):
        batch = plan.backend.tokens_per_batch * (cached // spread + width * 4 * shape.intermediate)
        needs["answering"] = weights, weights + batch
    else:
        shared = whole // (plan.backend.tensor_parallel_size if gpus else 1)
        needs["answering"] = shared, shared + int((plan.backend.kv_cache_gib or 0) * GIB)
    if judge is not None:
        batch = int(getattr(plan.judge, "tokens_per_batch", 0))
        each = 2 * judge.blocks * judge.keys * 2 + 8 * judge.intermediate
        own = judge.parameters * BYTES.get(getattr(plan.judge, "dtype", ""), 2)
        needs["judging"] = own, weights + own + batch * each
    return needs


def check_memory(plan: RunPlan, shape: Shape | None, judge: Shape | None, found: list[Gpu]) -> tuple[int, Finding]:
    """``(bytes, finding)``: a failure where a stage's weights alone could never fit, a warning where the rough model
    says that a stage does not fit now."""
    name = f"memory for {plan.model.name}"
    if shape is None:
        return 0, Finding(name, "note", "unknown: the sizes of these weights are not known before they are here")
    total, free = available(plan.compute.device, found)
    needs = memory(plan, shape, judge, len(found) if plan.compute.device != "cpu" else 0)
    stage, (weights, most) = max(needs.items(), key=lambda item: item[1])
    if weights > total:
        said = f"the weights alone take {weights / GIB:.1f} GiB for {stage}; there are {total / GIB:.1f} GiB in all"
        wider = "compute.device_map=auto, backend=vllm backend.tensor_parallel_size=<GPUs>" if len(found) > 1 else ""
        return most, Finding(name, "failed", said, ", ".join(filter(None, (_LARGER, wider))))
    stage, (_, most) = max(needs.items(), key=lambda item: item[1][1])
    said = f"about {most / GIB:.1f} GiB for {stage} (rough), {free / GIB:.1f} GiB free"
    if most > free:
        return most, Finding(name, "warning", said, _SMALLER[stage])
    return most, Finding(name, "ok", said)


_LARGER = "a smaller model, or a device with more memory"
_SMALLER = {
    "fine-tuning": "compute.training_tokens_per_pass=<fewer> (the result is the same)",
    "scoring": "compute.scoring_tokens_per_batch=<fewer>",
    "answering": "backend.tokens_per_batch=<fewer>, or vllm's backend.kv_cache_gib=<less>",
    "judging": "judge.tokens_per_batch=<fewer>, or a judge behind a server",
}


def available(device: str, found: list[Gpu]) -> tuple[int, int]:
    """Bytes ``(in all, free)``: the GPU's, or what the machine has and its control group allows."""
    kind, _, number = device.partition(":")
    if kind != "cpu" and found:
        memory = found[min(int(number or 0), len(found) - 1)].memory
        return memory, memory
    totals = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    free = list(totals)
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:  # Linux's
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    root = Path("/sys/fs/cgroup")
    old = root / "memory"
    for limit, used in (
        (root / "memory.max", root / "memory.current"),
        (old / "memory.limit_in_bytes", old / "memory.usage_in_bytes"),
    ):
        try:
            most = int(limit.read_text())
            totals.append(most)
            free.append(most - int(used.read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(totals), min(free)
