"""A fine-tuning's state on disk, so that one that was killed goes on where it was and ends with the same adapter.

transformers' own checkpoints are pickles (optimizer.pt, rng_state.pth). Here a checkpoint is one safetensors file with
a JSON header: adapters, the optimiser's state, the random states, the schedule, the Trainer's own state with the loss
curve. The Trainer still does the going on: it skips the batches that were done (``TrainerState.global_step``); only how
it reads its parts is replaced.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from suite.storage.durable import file_sha256
from suite.storage.unfinished import Unfinished

log = logging.getLogger(__name__)

_STEM, _HEADER = "training-", "keelbench"
KEPT = 2  # checkpoints: the last one, and the one before should that be damaged


class Checkpoints:
    """Where a fine-tuning's checkpoints lie, and how often one is written.

    Args:
        seconds: between two checkpoints, at least; 0 = after every optimiser step.
        beside: a folder that grows along with the training; its files are part of a checkpoint by their checksums.
        report, restore: what else the training counts, as JSON values, and how it goes on from them.
    """

    def __init__(
        self,
        unfinished: Unfinished,
        *,
        seconds: float,
        beside: Path | None = None,
        report: Callable[[], dict[str, Any]] = dict,
        restore: Callable[[Mapping[str, Any]], None] = lambda report: None,
    ):
        self.unfinished, self.seconds, self.beside = unfinished, seconds, beside
        self.report, self.restore = report, restore
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.seconds

    def write(self, trainer: "ResumableTrainer") -> None:
        tensors: dict[str, torch.Tensor] = {f"adapter.{n}": p for n, p in _trained(trainer.model).items()}
        groups = trainer.optimizer.state_dict()
        for index, values in groups["state"].items():
            for name, value in values.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        tensors["random.torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        numbers: Any = np.random.get_state(legacy=True)
        name, keys, *place = numbers
        header = {
            "trainer": asdict(trainer.state),
            "groups": groups["param_groups"],
            "schedule": trainer.lr_scheduler.state_dict(),
            "random": {
                "python": random.getstate(),
                "numpy": [name, keys.tolist(), *place],
            },
            "beside": self._checksums(),
            "report": self.report(),
        }
        plain = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}

        def save(path: Path) -> None:
            save_file(plain, str(path), metadata={_HEADER: json.dumps(header)})

        if self.unfinished.keep(f"{_STEM}{trainer.state.global_step:09d}.safetensors", save) is not None:
            self.unfinished.drop(self.unfinished.sound(_STEM)[:-KEPT])
        self._last = time.monotonic()

    def latest(self) -> "Checkpoint | None":
        """The newest checkpoint that is sound, with all that lies beside it."""
        for path in reversed(self.unfinished.sound(_STEM)):
            with safe_open(str(path), framework="pt") as handle:
                header = json.loads(handle.metadata()[_HEADER])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
            found = self._checksums()
            if all(found.get(name) == digest for name, digest in header["beside"].items()):
                return Checkpoint(tensors, header)
            log.warning("what lies beside the checkpoint %s is damaged", path.name)
        return None

    def _checksums(self) -> dict[str, str]:
        if self.beside is None:
            return {}
        files = (f for f in sorted(self.beside.rglob("*")) if f.is_file())
        return {str(f.relative_to(self.beside)): file_sha256(f) for f in files}


class Checkpoint:
    """What ``Checkpoints.write`` wrote."""

    def __init__(self, tensors: dict[str, torch.Tensor], header: dict[str, Any]):
        self.tensors, self.header = tensors, header

    @property
    def step(self) -> int:
        return int(self.header["trainer"]["global_step"])

    def place(self, folder: Path) -> str:
        """The Trainer's own part as the file it looks for; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRAINER_STATE_NAME).write_text(json.dumps(self.header["trainer"]))
        return str(folder)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}


class ResumableTrainer(Trainer):
    """A Trainer that reads a ``Checkpoint`` instead of pickles; ``goes_on_from`` is set before ``train``."""

    goes_on_from: Checkpoint | None = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        assert self.goes_on_from is not None
        saved = self.goes_on_from.part("adapter.")
        with torch.no_grad():
            for name, parameter in _trained(self.model).items():
                parameter.copy_(saved[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.goes_on_from is not None
        header = self.goes_on_from.header
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in self.goes_on_from.part("optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in header["groups"]]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.lr_scheduler.load_state_dict(header["schedule"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.goes_on_from is not None
        states = self.goes_on_from.header["random"]
        version, numbers, gauss = states["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = states["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(self.goes_on_from.tensors["random.torch"])
        devices = self.goes_on_from.part("random.cuda.")
        if devices and len(devices) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([devices[str(i)] for i in range(len(devices))])


class WriteCheckpoints(TrainerCallback):
    """Writes a checkpoint when one is due. It waits for the step's log: by then its loss is in the curve."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.trainer: ResumableTrainer | None = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        last = state.global_step == state.max_steps  # the stage is about to be finished
        if "loss" in (logs or {}) and not last and self.checkpoints.due():
            assert self.trainer is not None
            self.checkpoints.write(self.trainer)


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
