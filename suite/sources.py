"""From the name of a source to a file or folder: your own path first, the local root next, the hub last."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import DataError, MissingWeightsError
from suite.configuration.names import check_below, check_repo


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """A data set on the Hugging Face hub."""

    repo: str
    name: str | None = None  # the configuration, where the data set has several
    split: str = "train"
    revision: str | None = None

    def __post_init__(self) -> None:
        check_repo(self.repo, "hub.repo")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows in up to four places, tried in this order."""

    embedded: Path | None = None  # in the package
    path: str | None = None  # named by the user
    local: str | None = None  # under the local data root; a file, or a folder of files
    hub: HubSet | None = None

    def __post_init__(self) -> None:
        if self.local is not None:
            check_below(self.local, "local")

    def file(self, name: str, data_root: Path | None) -> Path | None:
        """The file, or None where only the hub is left.

        Raises:
            DataError: the user's file does not exist, or there is no file and no hub data set either.
        """
        if self.path is not None:
            path = Path(self.path).expanduser()
            if not path.exists():
                raise DataError(path, f"no such file (named as the source of {name!r})")
            return path
        if self.embedded is not None:
            return self.embedded
        if self.local is not None and data_root is not None and (data_root / self.local).exists():
            return data_root / self.local
        if self.hub is None:
            raise DataError(name, f"not found: {self.local_hint(data_root)} and no hub data set is configured")
        return None

    def hub_commit(self) -> str:
        """The commit of the hub's data set that this process read; "" where it read none."""
        return _COMMITS.get(self.hub, "") if self.hub is not None else ""

    def local_hint(self, data_root: Path | None) -> str:
        if self.local is None:
            return "no path is given"
        if data_root is None:
            return f"no local data root is set (paths.data or SUITE_DATA) in which {self.local} could lie"
        return f"{data_root} has no {self.local}"

    def hub_rows(self, name: str, data_root: Path | None) -> Iterable[tuple[int, dict[str, Any]]]:
        """``(number, row)`` of the hub data set (see ``hub_table``)."""
        return enumerate(self.hub_table(name, data_root), start=1)

    def hub_table(self, name: str, data_root: Path | None) -> Any:
        """The hub's ``datasets.Dataset``, from the local hub cache where it is there.

        Raises:
            DataError: gated, absent or out of reach, with what was tried before.
        """
        assert self.hub is not None
        from datasets import load_dataset

        hub = self.hub
        try:
            table = load_dataset(hub.repo, hub.name, split=hub.split, revision=hub.revision)
            _COMMITS[hub] = _commit(table)
            return table
        except (OSError, ValueError, RuntimeError) as error:
            offline = "; HF_HUB_OFFLINE is set" if hub_offline() else ""
            reason = str(error).splitlines()[0]
            raise DataError(
                name,
                f"{self.local_hint(data_root)}, and https://huggingface.co/datasets/{hub.repo} cannot be loaded "
                f"({reason}{offline}). If it is gated, accept its terms there and run `hf auth login`",
            ) from error


# The commit that each hub data set of this process was read at.
_COMMITS: dict[HubSet, str] = {}


def _commit(table: Any) -> str:
    """The hub's commit in the addresses that ``datasets`` keeps of what it read; "" where it keeps none."""
    for address in getattr(table.info, "download_checksums", None) or {}:
        found = re.search(r"@([0-9a-f]{40})/", str(address))
        if found:
            return found.group(1)
    return ""


def commit_of(folder: Path) -> str:
    """The hub's commit that a model's folder is a snapshot of; "" for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else ""


def resolve_model_folder(source: str, revision: str | None, *, code: bool = False) -> Path:
    """A folder with a model's configuration, tokenizer and safetensors: a local one, or a hub snapshot.

    Args:
        code: fetch Python files, too.

    Raises:
        MissingWeightsError: absent, gated or incomplete, with what to do about it.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        folder = local
    elif source.startswith((".", "/", "~")):
        raise MissingWeightsError(f"model folder {source!r} does not exist")
    else:
        folder = _hub_snapshot(source, revision, code)
    check_model_folder(folder)
    return folder


def check_model_folder(folder: Path) -> None:
    """
    Raises:
        MissingWeightsError: no configuration, or no safetensors.
    """
    missing = [
        what
        for what, glob in (("config.json", "config.json"), ("*.safetensors", "*.safetensors"))
        if not any(folder.glob(glob))
    ]
    if missing:
        raise MissingWeightsError(f"model folder {folder} has no {' and no '.join(missing)}")


def _hub_snapshot(repo: str, revision: str | None, code: bool) -> Path:
    from huggingface_hub import snapshot_download

    with hub_errors(repo):
        wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md", *(["*.py"] if code else [])]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))


@contextlib.contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """What the hub's client raises for a model, as one message that says what to do.

    Raises:
        MissingWeightsError: gated, absent, or out of reach.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    how = f"`hf download {repo}` on a machine with network access, or model.source=<folder> with a local copy"
    try:
        yield
    except GatedRepoError as error:
        raise MissingWeightsError(
            f"the weights of {repo} are gated: accept the licence at https://huggingface.co/{repo}, then "
            "`hf auth login` with a token of that account"
        ) from error
    except RepositoryNotFoundError as error:
        raise MissingWeightsError(f"{repo} is neither a folder nor a repository on the hub you may see") from error
    except HFValidationError as error:
        raise MissingWeightsError(f"{repo!r} is neither a folder nor a valid hub name: {error}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        offline = " (HF_HUB_OFFLINE is set)" if hub_offline() else ""
        raise MissingWeightsError(
            f"the weights of {repo} are not on this machine and the hub cannot be reached{offline}. Get them with {how}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise MissingWeightsError(
            f"the weights of {repo} could not be fetched: {error}. Get them with {how}"
        ) from error
    except Exception as error:
        if not of_the_network(error):
            raise
        raise MissingWeightsError(
            f"the weights of {repo} are not here and the hub cannot be reached ({error}). Get them with {how}"
        ) from error


def hub_offline() -> bool:
    """Whether HF_HUB_OFFLINE keeps the hub's client from the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def of_the_network(error: Exception) -> bool:
    """Whether the hub's HTTP client raised it: httpx or httpx2, as the hub's version has it."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")
