"""SEAL's files: safetensors with a JSON header, written whole or not at all; nothing in them is ever executed.

A selector file is what a learnt selector comes down to, one logit a sample id. It can be scored from without the model
that learnt it, so a selector learnt on a small model serves a large one (the paper's transfer between models).
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from baselines.records import FloatArray
from eval.errors import DataError

_CHECKSUM = "sha256"
_HEADER = "keelbench"  # the key of the JSON text in safetensors' string metadata


def write_state(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Tensors (moved to the CPU) and a JSON header as one file, renamed into place when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header)
    metadata = {_HEADER: text, _CHECKSUM: _checksum(plain, text)}
    try:
        save_file(plain, str(partial), metadata=metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What ``write_state`` wrote.

    Raises:
        DataError: no such file, no safetensors, damaged, or not one of SEAL's.
    """
    if not path.is_file():
        raise DataError(path, "no such file")
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise DataError(path, f"not valid safetensors: {error}") from error
    text = metadata.get(_HEADER)
    if text is None:
        raise DataError(path, "safetensors, but not written by SEAL: its header has no 'keelbench' entry")
    if metadata.get(_CHECKSUM) not in (None, _checksum(tensors, text)):
        raise DataError(path, "damaged: it fails its checksum")
    try:
        header: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(path, f"its header is not valid JSON: {error.msg}") from error
    return tensors, header


def _checksum(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_selector(path: Path, ids: Sequence[str], logits: FloatArray) -> None:
    """Save a learnt selector.

    Args:
        ids: sample ids, [n].
        logits: one a sample, [n]; the higher, the more the selector keeps the sample.

    Raises:
        ValueError: lengths differ, or an id stands twice.
    """
    if logits.shape != (len(ids),) or len(set(ids)) != len(ids):
        raise ValueError(f"{len(ids)} ids ({len(set(ids))} different) for logits of shape {logits.shape}")
    tensor = torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float64))
    write_state(Path(path), {"logits": tensor}, {"kind": "selector", "ids": list(ids)})


def load_selector(path: Path) -> dict[str, float]:
    """A saved selector: sample id -> logit.

    Raises:
        DataError: not a selector file, or ids and logits do not fit.
    """
    tensors, header = read_state(Path(path))
    ids, logits = header.get("ids"), tensors.get("logits")
    if header.get("kind") != "selector" or not isinstance(ids, list) or logits is None:
        raise DataError(path, "not a selector: it needs the tensor 'logits' and a header with 'ids'")
    if logits.shape != (len(ids),) or not bool(torch.isfinite(logits).all()):
        raise DataError(path, f"{len(ids)} ids, but logits of shape {list(logits.shape)}, or some of them not finite")
    return dict(zip(map(str, ids), logits.double().tolist(), strict=True))
