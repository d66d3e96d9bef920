"""Running system programs."""

from __future__ import annotations

import os
import time

from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.commands import NOT_THERE, Done, run


def test_both_outputs_and_the_status_come_back():
    done = run(["sh", "-c", "echo one; echo two >&2; exit 3"], 10)
    assert done == Done(3, "one\ntwo\n")
    assert done.last_words == "two"


def test_a_program_that_is_not_there_says_so():
    assert run(["gpufleet-no-such-program"], 10) == Done(NOT_THERE, "gpufleet-no-such-program is not installed")


def test_text_becomes_standard_input_and_lies_in_no_file():
    assert run(["cat"], 10, None, "geheim\n").output == "geheim\n"
    assert "memfd" in run(["readlink", "/proc/self/fd/0"], 10, None, "geheim").output


def test_the_environment_is_clean_but_for_what_was_given(monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    assert run(["env"], 10, {"EXTRA": "2"}).output.split() == [
        f"PATH={'/usr/sbin:/usr/bin:/sbin:/bin'}",
        "LC_ALL=C.UTF-8",
        "HOME=/root",
        "EXTRA=2",
    ]


def test_a_program_has_a_session_of_its_own():
    assert run(["sh", "-c", "cut -d' ' -f6 /proc/$$/stat"], 10).output.strip() != str(os.getsid(0))


def test_one_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    pid = tmp_path / "pid"
    started = time.monotonic()
    done = run(["sh", "-c", f"sleep 60 & echo $! > {pid}; echo begun; wait"], 0.5)
    assert done.timed_out
    assert done.output == "begun\n"
    assert time.monotonic() - started < 10
    time.sleep(0.1)
    assert not os.path.exists(f"/proc/{int(pid.read_text())}") or _state(int(pid.read_text())) == "Z"


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_a_daemon_that_keeps_the_output_open_holds_nobody():
    started = time.monotonic()
    assert run(["sh", "-c", "sleep 5 & echo done"], 60).output == "done\n"
    assert time.monotonic() - started < 4


def test_silence_has_last_words_too():
    assert Done(1, "\n \n").last_words == "it said nothing"
