"""Guards the sandbox: right programs pass, wrong ones fail, hostile ones are contained, each within seconds."""

import os
import shutil
import time
from pathlib import Path

import pytest

from eval import sandbox
from eval.errors import KeelBenchError, UnknownNameError
from eval.sandbox import Limits, Sandbox
from eval.tables import read_rows

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
SHORT = Limits(cpu_seconds=1, wall_seconds=3)


def processes() -> int:
    """Programs in sandboxes now, by the interpreter's way of being called in one."""
    calls = [f.read_bytes() for f in Path("/proc").glob("[0-9]*/cmdline") if f.exists()]
    return sum(call.endswith(b"-I\0-\0") for call in calls)


@pytest.fixture(params=[pytest.param("bubblewrap", marks=needs_bubblewrap), "subprocess_unsafe"])
def any_sandbox(request) -> Sandbox:
    return Sandbox(request.param, SHORT)


@pytest.fixture
def box() -> Sandbox:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    return Sandbox(limits=SHORT)


def contained(box: Sandbox, program: str, seconds: float = 10) -> str:
    """The reason a program failed, which it did in time and without leaving anything running."""
    before, start = processes(), time.perf_counter()
    outcome = box.run(program)
    assert time.perf_counter() - start < seconds
    assert not outcome.passed
    for _ in range(50):
        if processes() <= before:
            return outcome.reason
        time.sleep(0.1)
    raise AssertionError("something of the program is still running")


def test_the_machine_passes_its_own_check(any_sandbox):
    any_sandbox.check()


def test_a_program_passes_by_running_to_its_end(any_sandbox):
    assert any_sandbox.run("assert sum(range(5)) == 10").passed
    for program, reason in (
        ("assert False, 'no'", "AssertionError: no"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("exit()", "exit status 0"),
        ("import os; os._exit(0)", "exit status 0"),
        ("input()", "EOFError: EOF when reading a line"),
        ("text = '''never closed", "SyntaxError"),
    ):
        outcome = any_sandbox.run(program)
        assert not outcome.passed
        assert reason in outcome.reason


def test_many_programs_keep_their_order(any_sandbox):
    outcomes = any_sandbox.run_all([f"assert {i} % 3" for i in range(9)])
    assert [o.passed for o in outcomes] == [bool(i % 3) for i in range(9)]


def test_loops_and_memory_hogs_end_in_either_sandbox(any_sandbox):
    assert contained(any_sandbox, "while True: pass") == "more than 1 s of CPU time"
    assert contained(any_sandbox, "import time; time.sleep(60)") == "still running after 3 s"
    assert contained(any_sandbox, "x = bytearray(4 << 30)") == "MemoryError"


def test_a_fork_bomb_stays_small_and_ends(box):
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert contained(box, bomb) in ("more than 1 s of CPU time", "still running after 3 s")
    count = (
        "import os, time\nn = 1\ntry:\n    while n < 500:\n        if os.fork() == 0: time.sleep(9)\n        n += 1\n"
    )
    outcome = box.run(count + "except BlockingIOError:\n    raise SystemExit(f'at most {n}')")
    assert outcome.reason == f"at most {SHORT.processes}"


def test_files_of_the_machine_cannot_be_deleted_or_read(box, tmp_path):
    (tmp_path / "keep").write_text("x")
    removal = f"import shutil; shutil.rmtree({str(tmp_path)!r})"
    assert "FileNotFoundError" in contained(box, removal)
    assert (tmp_path / "keep").read_text() == "x"
    assert "Read-only file system" in contained(box, "import os; os.remove('/usr/bin/env')")
    assert "FileNotFoundError" in contained(box, "open('/etc/passwd')")
    assert "FileNotFoundError" in contained(box, f"open({__file__!r})")
    for folder in ("/", "/usr", "/dev", "/dev/shm"):
        assert "Error" in contained(box, f"open({folder!r} + '/x', 'w')")


def test_the_home_and_the_environment_are_not_there(box, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    files = f"import os; print(*[e for e in os.scandir({str(Path.home())!r}) if e.is_file()][0:1])"
    listed = box.run(files + f"\nassert not [e for e in os.scandir({str(Path.home())!r}) if e.is_file()]")
    assert listed.passed or "FileNotFoundError" in listed.reason or "PermissionError" in listed.reason
    assert box.run("import os; assert 'WANDB_API_KEY' not in os.environ and os.environ['HOME'] == '/tmp'").passed


def test_the_temporary_folder_is_limited_and_gone_afterwards(box):
    fill = "for i in range(100):\n    open(f'/tmp/{i}', 'wb').write(bytes(1 << 19))"
    assert "No space left" in contained(box, fill)
    assert "File too large" in contained(box, "open('/tmp/x', 'wb').write(bytes(1 << 21))")
    assert box.run("import os; assert os.listdir('/tmp') == []; open('/tmp/a', 'w').write('x')").passed
    assert box.run("import os; assert os.listdir('/tmp') == []").passed


def test_there_is_no_network(box):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert "ConnectionRefusedError" in contained(box, connect)
        assert Sandbox("subprocess_unsafe", SHORT).run(connect).passed  # the port is open: the wall is what refuses
    assert "Error" in contained(box, "import socket; socket.create_connection(('192.0.2.1', 80), 2)")


def test_output_without_end_does_not_fill_anything(box):
    assert contained(box, "while True: print('x' * 1000)") == "more than 1 s of CPU time"
    contained(box, "import sys\nwhile True: sys.stderr.write('x' * 1000)")


def test_a_missing_or_leaking_sandbox_is_refused_with_what_to_do(box, monkeypatch):
    if os.geteuid() == 0:  # as root behind a user namespace, the kernel does not count processes
        monkeypatch.setattr(sandbox.os, "geteuid", lambda: 1)
        with pytest.raises(KeelBenchError, match="the number of processes is not limited"):
            box.check()
        monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KeelBenchError, match=r"not installed\. Install it .* utility\.sandbox=subprocess_unsafe"):
        box.check()
    with pytest.raises(UnknownNameError, match="bubblewrap"):
        Sandbox("bublewrap")


def test_humanevals_own_solutions_pass_and_empty_ones_do_not(box, shared_data):
    box = Sandbox()
    rows = [row for _, row in read_rows(shared_data / "humaneval" / "HumanEval.jsonl.gz")][:24]
    for body, expected in (("canonical_solution", True), (None, False)):
        programs = [
            f"{r['prompt']}{r[body] if body else '    return None'}\n{r['test']}\ncheck({r['entry_point']})"
            for r in rows
        ]
        assert {o.passed for o in box.run_all(programs)} == {expected}
