"""One W&B run per job, finished inside the job with its true exit state.

What is logged also lies on disk; tracking can fail without failing the run. A server that fails while a run is logged
to it costs its live view only: the whole run is then written again as an offline one under the same id, which
``python -m suite.sync`` sends later. A run that was killed before it could say so leaves its id to the next attempt in
its folder, whose data replace the half that the server has.
"""

import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from eval.errors import UnknownNameError
from suite.plan import TrackingSpec

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
SYNCED = ".wandb.synced"  # the client's own marker beside a run's file: everything in it has been sent
ENDED = ".wandb.ended"  # ours: the run has told W&B how it ended
_FINISH_SECONDS = 60.0  # WANDB_FINISH_TIMEOUT says otherwise
_INIT_SECONDS = 30.0


class Terminated(BaseException):
    """SIGTERM as an exception, so that a run told to stop (Slurm, Ray) is marked failed and its data are kept."""


class Tracker:
    """A context: ``with Tracker(...) as tracker``. An exception inside marks the W&B run failed.

    ``sweep`` is the run's group, unless the tracking settings name one, and part of its configuration.
    """

    def __init__(
        self,
        spec: TrackingSpec,
        *,
        folder: Path,
        name: str,
        sweep: str,
        job_type: str,
        config: Mapping[str, Any],
    ):
        if spec.mode not in MODES:
            raise UnknownNameError("tracking mode", spec.mode, MODES)
        self.spec, self.folder, self.name = spec, folder, name
        self.group, self.job_type, self.config = spec.group or sweep, job_type, {**config, "sweep": sweep}
        self.run: Any = None
        self._mode = "disabled"
        self._broken = False  # the server failed; nothing more is sent to it
        self._calls: list[Callable[[Any], None]] = []  # all that was logged, to be said again to an offline run
        self._old_handler: Any = None

    def __enter__(self) -> "Tracker":
        self._trap_sigterm()
        self._mode = resolve_mode(self.spec.mode)
        if self._mode != "disabled":
            killed = _not_ended(self.folder)
            run_id = killed[-1].stem.removeprefix("run-") if killed else None
            self._guard("starting", lambda: self._start(self._mode, run_id))
            if not self._broken:
                for file in killed:  # all of it will be said again
                    file.with_suffix(SYNCED).touch()
                    file.with_suffix(ENDED).touch()
            if self._broken and self._mode == "online":
                self._mode, self._broken = "offline", False
                for file in self.folder.glob("wandb/run-*/run-*.wandb"):
                    for suffix in (SYNCED, ENDED):
                        file.with_suffix(suffix).touch()  # of the attempt, in which nothing was logged
                self._guard("starting offline", lambda: self._start("offline"))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.run is not None:
            run, self.run = self.run, None
            exit_code = 0 if kind is None else 1
            self._guard("finishing", lambda: run.finish(exit_code=exit_code))
            _mark(run, ENDED)
            if self._mode == "online":
                if self._broken:
                    self._broken = False
                    self._guard("keeping the run offline", lambda: self._again_offline(run, exit_code))
                if not self._broken:
                    _mark(run, SYNCED)  # sent, or kept in the offline run beside it
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)

    def curve(self, points: Sequence[Mapping[str, float]]) -> None:
        """The training curve: ``train/loss``, ``train/learning_rate``, ``train/grad_norm`` by ``train/step``."""
        rows = [{f"train/{k}": v for k, v in point.items()} for point in points]

        def send(run: Any) -> None:
            for row in rows:
                run.log(row)

        self._send("the training curve", send)

    def summary(self, row: Mapping[str, Any]) -> None:
        """A run's flat row, as summary values and as the one-row table ``results``."""
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        self._send("the summary", lambda run: run.summary.update(numbers))
        self.table("results", [row])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows as a W&B table; what a row lacks is null."""
        if not rows:
            return
        columns = list(dict.fromkeys(k for row in rows for k in row))
        data = [[row.get(c) for c in columns] for row in rows]

        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=columns, data=data, allow_mixed_types=True)})

        self._send(f"the table {name}", send)

    def artifact(
        self, kind: str, key: str, files: Sequence[Path], made_from: Mapping[str, str], *, used: bool = False
    ) -> None:
        """Files as the artifact ``<kind>-<key>``, an output of this run and, where ``used``, an input too.

        Args:
            key: the stage's key, so that equal content has one name in every run.
            made_from: the artifacts it was made from, as kind: key, for its metadata.
            used: something else of the run was made from it. W&B's lineage graph then leads from it through this run to
                the run's other outputs, and a run that found it in the cache stands beside the one that made it.
        """
        if kind not in self.spec.artifacts:
            return

        def send(run: Any) -> None:
            import wandb

            lineage = {k: f"{k}-{v}" for k, v in made_from.items()}
            artifact = wandb.Artifact(f"{kind}-{key}", type=kind, metadata={"key": key, "made_from": lineage})
            for file in files:
                artifact.add_file(str(file), name=file.name)
            if used:
                # What run.use_artifact does with a new artifact, less its waiting for the upload and its refusal to do
                # so offline, where the record is sent as well as any other.
                run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
            else:
                run.log_artifact(artifact)

        self._send(f"the artifact {kind}", send)

    def _send(self, what: str, call: Callable[[Any], Any]) -> None:
        if self.run is None:
            return
        self._calls.append(call)
        if not self._broken:
            self._guard(what, lambda: call(self.run))

    def _start(self, mode: str, run_id: str | None = None) -> None:
        import wandb

        (self.folder / "wandb-data").mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DATA_DIR"] = str(self.folder / "wandb-data")  # offline artifacts are staged there
        self.run = wandb.init(
            id=run_id,
            project=self.spec.project,
            entity=self.spec.entity,
            name=self.name,
            group=self.group,
            job_type=self.job_type,
            tags=list(self.spec.tags),
            notes=self.spec.notes,
            config=dict(self.config),
            dir=self.folder,
            mode=mode,  # type: ignore[arg-type]
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_git=True,
                disable_job_creation=True,
                # Nothing of somebody's machine: its name, the user's, the path of the program, the command line.
                x_disable_meta=True,
                host="-",
                username="-",
                program="suite",
                program_relpath="suite",
                init_timeout=_INIT_SECONDS,
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", _FINISH_SECONDS)),
                finish_timeout_raises=True,
            ),
        )
        self.run.define_metric("train/step", hidden=True)
        self.run.define_metric("train/*", step_metric="train/step")
        for rate in ("asr/*", "false_refusal/*", "train/loss"):
            self.run.define_metric(rate, summary="last")

    def _again_offline(self, online: Any, exit_code: int) -> None:
        """The whole run once more, offline, under the id that the server may know half of."""
        self._start("offline", online.id)
        run, self.run = self.run, None
        for call in self._calls:
            call(run)
        run.finish(exit_code=exit_code)
        _mark(run, ENDED)
        log.warning("W&B: the run is kept in %s; `python -m suite.sync` sends it", self.folder / "wandb")

    def _guard(self, what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # whatever a tracking server does, the run goes on; the data are on disk
            self._broken = True
            log.warning("W&B: %s failed (%s: %s); the run goes on", what, type(error).__name__, error)

    def _trap_sigterm(self) -> None:
        def stop(number: int, frame: Any) -> None:
            raise Terminated("told to stop (SIGTERM)")

        try:
            self._old_handler = signal.signal(signal.SIGTERM, stop)
        except ValueError:  # not the main thread: the launcher's own handler stands
            self._old_handler = None


def _mark(run: Any, suffix: str) -> None:
    file = Path(run.settings.sync_file)
    if file.is_file():
        file.with_suffix(suffix).touch()


def _not_ended(folder: Path) -> list[Path]:
    """What killed attempts in this folder have left, oldest first."""
    files = [f for f in folder.glob("wandb/*run-*/run-*.wandb") if not f.with_suffix(ENDED).exists()]
    return sorted(files, key=lambda f: f.parent.name.partition("run-")[2])


def resolve_mode(mode: str) -> Any:
    """``auto`` is online where the user is already logged in, else offline; nobody is ever asked to log in."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in MODES[1:]:
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    import netrc
    from urllib.parse import urlparse

    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return "online" if netrc.netrc().authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"
