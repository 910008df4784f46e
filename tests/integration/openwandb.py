"""A W&B-compatible server for tests: PyPI's ``openwandb`` in an environment of its own (CC BY-NC: a test tool only).

It is not W&B: it keeps neither group nor job type, only numbers of the summary, and no bytes of artifacts.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

VERSION = "0.5.25"
KEY = "local" + "0" * 35


def install(tools: Path) -> tuple[Path | None, str]:
    """The server's program under ``tools``, installed there if need be; or None and the reason."""
    home = tools / f"openwandb-{VERSION}"
    program = home / "bin" / "openwandb"
    if program.exists():
        return program, ""
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", home], check=True, capture_output=True, timeout=120)
        pip = [home / "bin" / "pip", "install", "--quiet", f"openwandb=={VERSION}"]
        subprocess.run(pip, check=True, capture_output=True, timeout=300, text=True)
    except (subprocess.SubprocessError, OSError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return None, f"openwandb {VERSION} cannot be installed: {said[-1] if said else error}"
    return program, ""


class Server:
    """The server on a free port of the loopback interface; what it holds outlives its process."""

    def __init__(self, program: Path, data: Path):
        self.program, self.data = program, data
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What makes a W&B client its own: logged in, as ``tracking=auto`` wants it."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        return {**kept, "WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_FINISH_TIMEOUT": "20"}

    def start(self) -> None:
        # By its interpreter: the program's first line names the place where the environment was made, not where it is.
        command = [self.program.parent / "python", self.program, "serve", "--host", "127.0.0.1", "-p", str(self.port)]
        command += ["--data-dir", self.data]
        self.data.parent.mkdir(parents=True, exist_ok=True)
        with (self.data.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(600):
            try:
                urllib.request.urlopen(self.url, timeout=2).close()
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
            else:
                return
        raise TimeoutError(f"openwandb did not come up on {self.url}")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return json.load(answer)

    def runs(self, project: str) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = self.get(f"/api/v2/projects/default/{project}/runs")["runs"]
        return runs

    def tables(self, project: str, run_id: str) -> dict[str, list[dict[str, Any]]]:
        """A run's tables by name, each as rows."""
        found = {}
        for file in self.get(f"/api/v1/runs/{run_id}/files")["files"]:
            if file["name"].endswith(".table.json"):
                table = self.get(f"/files/default/{project}/{run_id}/{file['name']}")
                name = file["name"].split("/")[-1].rsplit("_", 2)[0]
                found[name] = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        return found
