"""A real Slurm of one node on loopback, with accounting, for the length of a test; nothing outside its folder.

Needs root, and Debian's slurm-wlm, slurmdbd, munge and mariadb-server (`make clusters` installs them).
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "mariadb", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
# Longer than the job of a test needs to leave, shorter than a test waits.
GRACE_SECONDS = 30


def missing() -> str:
    """Why there can be no Slurm here; "" where there can."""
    absent = [p for p in PROGRAMS if shutil.which(p, path=PATH) is None]
    if absent:
        return f"no Slurm on this machine: {', '.join(absent)} missing (make clusters)"
    return "" if os.geteuid() == 0 else "a Slurm of the test's own needs root"


class SlurmCluster:
    """``with SlurmCluster(folder) as cluster``; programs that get ``cluster.environment`` use it. Two partitions share
    the node: what comes to ``urgent`` pushes out what runs in ``main``, which has a grace time."""

    def __init__(self, folder: Path, cpus: int = 2):
        self.folder, self.cpus = folder, cpus
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._database: subprocess.Popen | None = None

    def __enter__(self) -> "SlurmCluster":
        for name in ("state", "spool", "log", "munge", "database"):
            (self.folder / name).mkdir(parents=True)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("slurmd", "slurmctld", "slurmdbd", "munged"):
            self._end(self.folder / f"{name}.pid")
        if self._database is not None:
            self._database.terminate()
            self._database.wait(timeout=30)

    def run(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def _start(self) -> None:
        self._munge()
        self._accounting()
        host, ports = socket.gethostname().split(".")[0], _free_ports(2)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 500
        self._write("slurm.conf", {
            **self._shared, "ClusterName": "test", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmdUser": "root",
            "CredType": "cred/munge", "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "SlurmctldPort": ports[0], "SlurmdPort": ports[1], "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd.pid", "SlurmctldLogFile": self.folder / "log/slurmctld",
            "SlurmdLogFile": self.folder / "log/slurmd", "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool", "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none",
            "SwitchType": "switch/none", "MpiDefault": "none", "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/slurmdbd", "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": self._dbd_port, "AccountingStoragePass": self.folder / "munge/socket",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core", "SchedulerParameters": "sched_interval=2,bf_interval=2",
            "PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE", "ReturnToService": 2,
            "SlurmdParameters": "config_overrides", "MinJobAge": 20,
            "EnforcePartLimits": "ALL",
        }, [
            f"NodeName={host} NodeAddr=127.0.0.1 CPUs={self.cpus} RealMemory={memory} State=UNKNOWN",
            f"PartitionName=main Nodes={host} Default=YES PriorityTier=1 GraceTime={GRACE_SECONDS} State=UP",
            f"PartitionName=urgent Nodes={host} PriorityTier=10 State=UP",
        ])  # fmt: skip
        self.run("slurmctld", "-f", str(self.folder / "slurm.conf"))
        self.run("slurmd", "-f", str(self.folder / "slurm.conf"), "-N", host)
        until(self._idle, 30)

    def _idle(self) -> bool:
        command = ["sinfo", "--noheader", "--format=%T"]
        return (
            "idle" in subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60).stdout
        )

    def _munge(self) -> None:
        place = self.folder / "munge"
        place.chmod(0o711)
        (place / "key").write_bytes(secrets.token_bytes(1024))
        (place / "key").chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "log-file": "log", "seed-file": "seed"}
        self.run("munged", "--force", f"--pid-file={self.folder / 'munged.pid'}",
                 *(f"--{option}={place / name}" for option, name in files.items()))  # fmt: skip

    def _accounting(self) -> None:
        place = self.folder / "database"
        shutil.chown(place, "mysql", "mysql")
        for folder in [place, *place.parents][: len(place.parts) - 2]:  # pytest's are the user's alone
            folder.chmod(folder.stat().st_mode | 0o011)
        self.run("mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={place}", "--skip-test-db",
                 "--auth-root-authentication-method=normal")  # fmt: skip
        with (self.folder / "log/database").open("w") as log:
            self._database = subprocess.Popen(
                ["mariadbd", "--no-defaults", "--user=mysql", f"--datadir={place}", "--skip-networking",
                 f"--socket={place / 'socket'}", f"--pid-file={place / 'pid'}", "--innodb-buffer-pool-size=64M"],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: self._sql("create user slurm@localhost identified by 'slurm'; "
                                "grant all on slurm_acct.* to slurm@localhost"), 60)  # fmt: skip
        self._dbd_port = _free_ports(1)[0]
        self._shared = {
            "AuthType": "auth/munge", "AuthInfo": f"socket={self.folder / 'munge/socket'}", "SlurmUser": "root",
        }  # fmt: skip
        self._write("slurmdbd.conf", {
            **self._shared, "DbdHost": "localhost", "DbdAddr": "127.0.0.1", "DbdPort": self._dbd_port,
            "StorageType": "accounting_storage/mysql", "StorageHost": "localhost", "StorageUser": "slurm",
            "StoragePass": "slurm", "StorageLoc": "slurm_acct", "LogFile": self.folder / "log/slurmdbd",
            "PidFile": self.folder / "slurmdbd.pid",
        }, [])  # fmt: skip
        (self.folder / "slurmdbd.conf").chmod(0o600)
        # The client library looks for the server's socket at its own default place, unless it is told another.
        self.environment["MYSQL_UNIX_PORT"] = str(place / "socket")
        self.run("slurmdbd")
        until(lambda: _answers(self._dbd_port), 30)

    def _sql(self, statement: str) -> bool:
        command = ["mariadb", "--no-defaults", f"--socket={self.folder / 'database/socket'}", "--execute", statement]
        return subprocess.run(command, env=self.environment, capture_output=True, timeout=30).returncode == 0

    def _write(self, name: str, settings: dict[str, object], lines: list[str]) -> None:
        text = [f"{k}={v}" for k, v in settings.items()] + lines
        (self.folder / name).write_text("\n".join(text) + "\n")

    @staticmethod
    def _end(pid_file: Path) -> None:
        try:
            pid = int(pid_file.read_text())
            os.kill(pid, signal.SIGTERM)
            until(lambda: not Path(f"/proc/{pid}").exists(), 15)
        except (OSError, ValueError, TimeoutError):
            pass


def until(condition: Callable[[], bool], seconds: float, every: float = 0.3) -> None:
    """
    Raises:
        TimeoutError: it did not come about.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(every)


def _free_ports(count: int) -> list[int]:
    open_sockets = [socket.socket() for _ in range(count)]
    for one in open_sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in open_sockets]
    for one in open_sockets:
        one.close()
    return ports


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
