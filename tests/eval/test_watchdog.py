"""What a process started is gone soon after the process was killed, as nothing in it could see to that."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import subprocess, sys, time
from eval.watchdog import Watchdog
earlier = subprocess.Popen(["sleep", "300"])
with Watchdog():
    time.sleep(0.3)
    later = subprocess.Popen(["sh", "-c", "sleep 300 & wait"], start_new_session=True)
    print(earlier.pid, later.pid, flush=True)
    time.sleep(float(sys.argv[1]))
print("left", flush=True)
time.sleep(1.5)
"""


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE  # which waits for whoever inherited it


def start(seconds: float):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    earlier, later = map(int, parent.stdout.readline().split())
    time.sleep(1.5)
    return parent, psutil.Process(earlier), psutil.Process(later)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_descendants_die_with_a_killed_parent_and_only_those_of_the_context(sent):
    parent, earlier, later = start(300)
    grandchild = later.children()[0]
    os.kill(parent.pid, sent)
    parent.wait()
    end = time.monotonic() + 20
    while (alive(later) or alive(grandchild)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(later)
    assert not alive(grandchild)
    assert alive(earlier)
    earlier.kill()


def test_after_the_context_nothing_is_killed():
    parent, earlier, later = start(1.6)
    assert parent.stdout.readline() == "left\n"
    parent.wait()
    time.sleep(1.5)
    assert alive(later)
    for process in (earlier, *later.children(), later):
        process.kill()
