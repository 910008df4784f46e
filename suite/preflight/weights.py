"""Weights: here and whole, or on the hub and permitted. Nothing is downloaded."""

import contextlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.errors import KeelBenchError, MissingWeightsError
from suite.preflight.shapes import KNOWN
from suite.sources import check_model_folder, hub_errors, hub_offline
from suite.stages.models import embedded_gguf

REACH_SECONDS = 10.0


@dataclass(frozen=True)
class Place:
    """Where weights are."""

    kind: Literal["embedded", "folder", "hub"]
    folder: Path | None = None  # None: still to be fetched, or embedded
    download_bytes: int = 0

    @property
    def said(self) -> str:
        if self.kind == "embedded":
            return "embedded, installed"
        if self.folder is not None:
            return "here and whole" if self.kind == "folder" else "in the hub's cache, whole"
        return f"on the hub, permitted; {self.download_bytes / 1e9:.1f} GB to fetch"


def find_weights(source: str, revision: str | None) -> Place:
    """Where the weights named ``source`` are.

    Raises:
        MissingWeightsError: absent, incomplete, gated or out of reach, with what to do about it.
    """
    if source.startswith("embedded:"):
        embedded_gguf(source)
        return Place("embedded")
    local = Path(source).expanduser()
    if local.is_dir() or source.startswith((".", "/", "~")):
        if not local.is_dir():
            raise MissingWeightsError(f"model folder {source!r} does not exist")
        check_model_folder(local)
        check_whole(local)
        return Place("folder", local)
    return _hub(source, revision)


def check_whole(folder: Path) -> None:
    """Every shard that the index names, each as long as its own header says. Contents are not hashed: 16 GB take longer
    to read than a preflight may.

    Raises:
        MissingWeightsError: naming what is missing or cut short.
    """
    files = {f.name for f in folder.glob("*.safetensors")}
    problems = []
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            raise MissingWeightsError(f"{index} is not an index of safetensors") from None
        problems += [f"has no {name}, which its index names" for name in sorted(named - files)]
    for name in sorted(files):
        problem = _cut_short(folder / name)
        if problem:
            problems.append(f"{name} {problem}")
    if problems:
        raise MissingWeightsError(f"model folder {folder}: {'; '.join(problems)}; fetch it again")


def _cut_short(file: Path) -> str:
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > size:
                return f"has {size} bytes, less than its header"
            header = json.loads(handle.read(length))
        expected = 8 + length + max(t["data_offsets"][1] for name, t in header.items() if name != "__metadata__")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return "is not a safetensors file"
    return "" if size == expected else f"has {size} bytes, its header says {expected}"


def _hub(repo: str, revision: str | None) -> Place:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with hub_errors(repo):
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
            check_model_folder(folder)
            check_whole(folder)
            return Place("hub", folder)
        except LocalEntryNotFoundError:
            if hub_offline():
                raise
        except MissingWeightsError:  # an unfinished download, which goes on when asked for again
            if hub_offline():
                raise
        api = HfApi()
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=REACH_SECONDS)
        api.auth_check(repo)
        files = [f for f in info.siblings or [] if f.rfilename.endswith(".safetensors")]
        if not files:
            raise MissingWeightsError(f"{repo} has no safetensors on the hub; weights in other formats are not loaded")
        return Place("hub", None, sum(f.size or 0 for f in files))


@contextlib.contextmanager
def gate_named(source: str) -> Iterator[None]:
    """An error about weights that ``conf`` names and that are gated also says how access is granted."""
    try:
        yield
    except KeelBenchError as error:
        shape = KNOWN.get(source)
        if shape is None or not shape.gated or "gated" in str(error):
            raise
        gate = f"gated: accept its licence at https://huggingface.co/{source}, then `hf auth login`"
        raise MissingWeightsError(f"{error} ({gate})") from error
