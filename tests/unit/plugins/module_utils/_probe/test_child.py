"""Children that answer, crash, hang, or refuse to die."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import child


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_value_of_the_function_comes_back():
    assert child.start(lambda: {"gpus": [1, None, "ä"]}, 5).answer() == {"gpus": [1, None, "ä"]}


def test_an_answer_longer_than_a_pipe_holds_comes_back_whole():
    assert child.start(lambda: "x" * 1_000_000, 5).answer() == "x" * 1_000_000


def test_an_exception_becomes_no_answer_with_its_text():
    def fail():
        raise ValueError("no such GPU")

    with pytest.raises(child.NoAnswer, match=r"^no such GPU$"):
        child.start(fail, 5).answer()


def test_a_crash_names_the_signal_and_leaves_the_caller_alone():
    with pytest.raises(child.NoAnswer, match=r"killed by signal 11 \(SIGSEGV\) without an answer"):
        child.start(lambda: os.kill(os.getpid(), signal.SIGSEGV), 5).answer()


def test_a_silent_exit_is_no_answer():
    with pytest.raises(child.NoAnswer, match="ended with status 3 without an answer"):
        child.start(lambda: os._exit(3), 5).answer()


def test_a_hanging_child_that_ignores_sigterm_is_killed_at_the_limit():
    def hang():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    process = child.start(hang, 0.3)
    started = time.monotonic()
    with pytest.raises(child.NoAnswer, match=r"no answer within 0\.3 s; the child process was killed"):
        process.answer()
    assert time.monotonic() - started < 2
    assert not _alive(process.pid)


def test_a_caller_that_comes_late_still_gets_the_answer():
    process = child.start(lambda: "early", 0.1)
    time.sleep(1)
    assert process.answer() == "early"


def test_a_child_that_dribbles_past_the_limit_is_stopped():
    def dribble():
        pipe = max(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))
        while True:
            os.write(pipe, b"x")
            time.sleep(0.0005)

    started = time.monotonic()
    with pytest.raises(child.NoAnswer, match="no answer within"):
        child.start(dribble, 0.3).answer()
    assert time.monotonic() - started < 3


def test_what_a_hanging_child_started_is_killed_with_it(tmp_path):
    note = tmp_path / "pid"

    def hang_twice():
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(60)
        note.write_text(str(grandchild))
        os._exit(0)

    process = child.start(hang_twice, 0.5)
    with pytest.raises(child.NoAnswer, match="no answer within"):
        process.answer()
    time.sleep(0.05)
    assert not _alive(int(note.read_text()))


def test_a_child_that_cannot_be_killed_is_reported_and_not_waited_for(monkeypatch):
    process = child.start(lambda: time.sleep(60), 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", lambda pid, number: None)
        patch.setattr(os, "kill", lambda pid, number: None)
        started = time.monotonic()
        with pytest.raises(child.NoAnswer, match=r"cannot be killed \(state S\).*reboot"):
            process.answer()
        assert time.monotonic() - started < 2
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)


def test_the_child_inherits_no_descriptor_but_its_pipe(tmp_path):
    def open_files():
        found = {}
        for name in os.listdir("/proc/self/fd"):
            if os.path.lexists(f"/proc/self/fd/{name}"):
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        return sorted(found.items())

    with open(tmp_path / "secret", "w", encoding="ascii") as file:
        os.set_inheritable(file.fileno(), True)
        files = child.start(open_files, 5).answer()
    assert [path for _, path in files[:3]] == ["/dev/null"] * 3
    assert len(files) == 4
    assert files[3][1].startswith("pipe:")


def test_the_child_has_its_own_session():
    process = child.start(lambda: os.getsid(0), 5)
    assert process.answer() == process.pid


def _status():
    with open("/proc/self/status", encoding="ascii") as file:
        return dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)


def test_a_confined_child_can_neither_load_modules_nor_make_nodes():
    changing = 1 << 16 | 1 << 27
    status = child.start(_status, 5, confined=True).answer()
    assert status["NoNewPrivs"] == "1"
    for name in ("CapEff", "CapPrm", "CapInh", "CapBnd"):
        assert int(status[name], 16) & changing == 0 or (name == "CapBnd" and os.geteuid() != 0), name
        assert int(status[name], 16) == int(_status()[name], 16) & ~changing or os.geteuid() != 0, name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could make a device node in the first place")
def test_what_a_confined_child_executes_is_confined_too(tmp_path):
    def make():
        return subprocess.run(
            ["mknod", str(tmp_path / "node"), "c", "1", "3"], check=False, capture_output=True
        ).returncode

    assert child.start(make, 5, confined=True).answer() == 1
    assert not (tmp_path / "node").exists()


def test_an_ordinary_child_keeps_what_the_parent_may():
    assert child.start(_status, 5).answer()["CapEff"] == _status()["CapEff"]


def test_the_child_leaves_no_core_file():
    import resource

    assert child.start(lambda: resource.getrlimit(resource.RLIMIT_CORE)[0], 5).answer() == 0


def test_a_command_prints_into_its_output():
    assert child.spawn(["/bin/sh", "-c", "echo out; echo err >&2"], 5, 100).output() == b"out\n"


def test_a_failing_command_is_no_answer():
    with pytest.raises(child.NoAnswer, match="the command ended with status 4"):
        child.spawn(["/bin/sh", "-c", "echo out; exit 4"], 5, 100).output()


def test_a_command_that_takes_too_long_is_killed():
    with pytest.raises(child.NoAnswer, match=r"no answer within 0\.2 s"):
        child.spawn(["/bin/sh", "-c", "trap '' TERM; sleep 60"], 0.2, 100).output()


def test_a_command_that_closes_its_output_and_stays_is_killed():
    started = time.monotonic()
    with pytest.raises(child.NoAnswer, match="no answer within"):
        child.spawn(["/bin/sh", "-c", "exec >&-; sleep 60"], 0.2, 100).output()
    assert time.monotonic() - started < 3


def test_a_command_that_prints_without_end_is_stopped():
    with pytest.raises(child.NoAnswer, match="larger than 100000 bytes"):
        child.spawn(["/bin/sh", "-c", "while :; do echo yyyyyyyyyyyyyyyyyyyyyy; done"], 5, 100_000).output()


def test_a_command_that_cannot_start_raises_and_leaks_nothing():
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No such file"):
        child.spawn(["/nowhere/program"], 5, 100)
    assert len(os.listdir("/proc/self/fd")) == before
