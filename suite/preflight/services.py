"""The servers that a run talks to: a judge's, W&B's."""

import os
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from eval.judges import Judge
from eval.judges.model_judge import ModelJudge
from suite.plan import TrackingSpec
from suite.preflight.findings import Finding
from suite.preflight.weights import Place, find_weights
from suite.tracking.run import resolve_mode

WANDB = "https://api.wandb.ai"
REACH_SECONDS = 10.0


def check_judge(judge: Judge) -> tuple[str, Place | None]:
    """What answers, and where its weights are if it is a model in this process.

    Raises:
        KeelBenchError: a server without its key, out of reach, or without the model; weights that are not there.
    """
    if not isinstance(judge, ModelJudge):
        judge.check()
        return "no model needed", None
    if judge.server is not None:
        judge.check()
        return f"{judge.model} at {_host(judge.server)} answers", None
    place = find_weights(judge.model, judge.revision)
    folder = place.folder or Path(judge.model)
    replace(judge, weights=folder).check()
    return f"{Path(judge.model).name}: {place.said}", place


def check_tracking(spec: TrackingSpec) -> Finding:
    """W&B's server and key, where runs go there."""
    mode = resolve_mode(spec.mode)
    if mode != "online":
        how = "; `python -m suite.sync` sends it later" if mode == "offline" else ""
        return Finding("W&B", "ok", f"{mode}{how}")
    state = "failed" if spec.mode == "online" else "warning"  # asked for by name, or found to be possible
    url = os.environ.get("WANDB_BASE_URL", WANDB)
    remedy = "tracking=offline keeps everything for `python -m suite.sync`"
    if not logged_in():
        return Finding("W&B", "failed", f"no key for {_host(url)}", f"`wandb login`, or WANDB_API_KEY; {remedy}")
    try:
        urllib.request.urlopen(url, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding("W&B", state, f"{_host(url)} cannot be reached ({reason})", remedy)  # type: ignore[arg-type]
    return Finding("W&B", "ok", f"{_host(url)} answers; a key is there")


def logged_in() -> bool:
    """Whether W&B's client has a key for its server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    host = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB)).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _host(url: str) -> str:
    return urlsplit(url).hostname or url
