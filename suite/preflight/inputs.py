"""Data sets, benchmarks, methods' own files, tasks: read as the stages read them, counted and checksummed."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from baselines.method import Method
from eval.benchmarks import checksum
from eval.errors import DataError
from eval.records import Prompt
from suite.plan import BenchmarkSource, DatasetSpec, RunPlan
from suite.preflight.findings import Finding, Findings
from suite.sources import Source, hub_offline, of_the_network
from suite.stages.data import Data, load_data, load_prompts
from suite.stages.selection import cut_size
from suite.stages.utility import load_tasks


class Inputs:
    """What was read, each thing once however many points share it; None where it could not be."""

    def __init__(self, findings: Findings, *, fetch: bool):
        """
        Args:
            fetch: whether a data set that is only on the hub is downloaded, as its run would; else it is only asked
                whether it may be.
        """
        self.findings, self.fetch = findings, fetch
        self._data: dict[str, Data | None] = {}
        self._prompts: dict[str, list[Prompt]] = {}

    def data(self, dataset: DatasetSpec, data_root: Path | None) -> Data | None:
        key = repr((dataset, data_root))
        if key not in self._data:
            self._data[key] = None

            def read() -> str:
                told = self.only_on_hub(dataset.name, dataset.source, data_root)
                if told and not self.fetch:
                    return told
                data = self._data[key] = load_data(dataset, data_root)
                skipped = f", {sum(data.skipped.values())} skipped" if data.skipped else ""
                return f"{len(data.samples)} samples{skipped}"

            self.findings.once(key, f"data set {dataset.name}", read)
        return self._data[key]

    def only_on_hub(self, name: str, source: Source, data_root: Path | None) -> str:
        """What the hub says of a data set that is nowhere else; "" where it lies here.

        Raises:
            DataError: it may not be had.
        """
        if source.file(name, data_root) is not None or source.hub is None:
            return ""
        return _ask_hub(name, source, data_root)

    def selection(self, plan: RunPlan, data: Data | None) -> None:
        """Whether k fits ``data``."""
        if data is not None and plan.selection.name != "all":
            n = len(data.samples)
            self.findings.once((repr((plan.dataset, plan.paths.data)), plan.selection),
                               f"selection from {plan.dataset.name}",
                               lambda: f"{plan.selection.name}, {cut_size(plan.selection, n)} of {n}")  # fmt: skip

    def prompts(
        self, benchmarks: Sequence[BenchmarkSource], limit: int | None, data_root: Path | None
    ) -> dict[str, list[Prompt]]:
        """Of the benchmarks that could be read, at most ``limit`` of each expectation."""
        found = {}
        if not benchmarks:
            self.findings.fail("benchmark", "no benchmark: name at least one, such as benchmark=[mini_harmful]")
        for benchmark in benchmarks:
            key = repr((benchmark, limit, data_root))
            name = benchmark.spec.name

            def read(benchmark: BenchmarkSource = benchmark, key: str = key, name: str = name) -> Iterator[Finding]:
                self.only_on_hub(name, benchmark.source, data_root)
                self._prompts[key] = load_prompts(benchmark, limit, data_root)
                yield _counted(benchmark, len(self._prompts[key]), data_root)

            self.findings.once(key, f"benchmark {name}", read)
            if key in self._prompts:
                found[name] = self._prompts[key]
        return found

    def method(self, method: Method) -> None:
        """The method's own files."""

        def read() -> str:
            return "ready" if method.calibration() is None else "measures its layer on the model first"

        self.findings.once(repr(method), f"method {method.name}", read)

    def tasks(self, plan: RunPlan) -> None:
        """Utility tasks: documents, and the sandbox tried where one runs code."""
        if plan.utility.tasks:
            self.findings.once(
                repr((plan.utility, plan.paths.data)), f"utility {plan.utility.name}",
                lambda: f"{', '.join(load_tasks(plan.utility, plan.paths.data))}: complete",
            )  # fmt: skip


def _counted(benchmark: BenchmarkSource, taken: int, data_root: Path | None) -> Finding:
    """The count was verified as the file was read; another checksum is told (files are re-encoded on their way)."""
    spec = benchmark.spec
    said = f"{spec.count} prompts, as published; {taken} asked" if spec.count else f"{taken} prompts asked"
    path = benchmark.source.file(spec.name, data_root)
    if path is not None and spec.sha256 and checksum(path) != spec.sha256:
        return Finding(f"benchmark {spec.name}", "warning", f"{said}; its checksum is not the known file's",
                       "the count is right; fetch the file again if its wording matters")  # fmt: skip
    return Finding(f"benchmark {spec.name}", "ok", said + (", checksum right" if path and spec.sha256 else ""))


def _ask_hub(name: str, source: Source, data_root: Path | None) -> str:
    """What the hub says of a data set, before its client tries five times.

    Raises:
        DataError: gated, absent or out of reach, and not in the local cache of data sets either.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    hub = source.hub
    assert hub is not None
    if _in_cache(hub.repo):
        return "in the hub's cache"
    page = f"https://huggingface.co/datasets/{hub.repo}"
    try:
        HfApi().auth_check(hub.repo, repo_type="dataset")
    except Exception as error:
        if not isinstance(error, OSError | ValueError | OfflineModeIsEnabled) and not of_the_network(error):
            raise
        reason = "HF_HUB_OFFLINE is set" if hub_offline() else str(error).splitlines()[0]
        raise DataError(
            name,
            f"{source.local_hint(data_root)}, and {page} cannot be asked ({reason}). If it is gated, accept its terms "
            "there and run `hf auth login`",
        ) from error
    return f"on the hub, permitted ({page}); counted when it is fetched"


def _in_cache(repo: str) -> bool:
    """Whether ``datasets`` has built this data set here before (it names folders in a spelling of its own)."""
    from huggingface_hub import constants

    def plain(name: str) -> str:
        return name.replace("_", "").replace("/", "").lower()

    root = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return any(plain(folder.name) == plain(repo) for folder in root.glob("*___*"))
