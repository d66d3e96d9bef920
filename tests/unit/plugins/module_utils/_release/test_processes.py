from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import processes
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.processes import Account, Ended

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another account")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


@pytest.fixture
def nobody() -> Account:
    entry = pwd.getpwnam("nobody")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def run(account: Account, script: str, time_limit: float = 20, **more: object) -> Ended:
    return processes.run_as(
        account, ["/bin/sh", "-c", script], environment=ENVIRONMENT, directory="/", time_limit=time_limit, **more
    )


def test_the_child_has_only_the_rights_of_the_account(nobody: Account) -> None:
    ended = run(nobody, "id -u; id -G; umask; env | sort; cat /etc/shadow")
    uid, groups, umask, *rest = ended.output.splitlines()
    assert (uid, groups, umask) == (str(nobody.uid), str(nobody.gid), "0022")
    assert "LC_ALL=C.UTF-8" in rest
    assert not [line for line in rest if line.startswith("HOME=")]
    assert "Permission denied" in rest[-1]
    assert ended.returncode != 0
    assert not ended.timed_out


def test_further_groups_and_standard_input_reach_the_child(nobody: Account) -> None:
    ended = run(nobody, "id -G; cat", groups=[12345], text="torch==2.9.1\n")
    assert "12345" in ended.output.splitlines()[0].split()
    assert ended.output.splitlines()[1] == "torch==2.9.1"


def test_at_the_limit_everything_ends_also_what_left_its_session(nobody: Account) -> None:
    marker = f"{os.getpid()}.5"
    script = f"setsid sh -c 'sleep 1{marker} & sleep 1{marker}' & (setsid setsid sleep 1{marker} &) ; sleep 1{marker}"
    begin = time.monotonic()
    ended = run(nobody, script, time_limit=0.5)
    assert ended.timed_out
    assert time.monotonic() - begin < 10
    assert subprocess.run(["pgrep", "-f", f"sleep 1{marker}"], capture_output=True, text=True, check=False).stdout == ""


def test_a_grandchild_that_keeps_the_output_open_does_not_hold_us(nobody: Account) -> None:
    begin = time.monotonic()
    ended = run(nobody, "echo done; setsid sleep 30 &")
    assert ended.output == "done\n"
    assert time.monotonic() - begin < 10


def test_only_the_end_of_a_flood_is_kept(nobody: Account) -> None:
    ended = run(nobody, "yes | head -c 5000000; echo last")
    assert ended.output.endswith("last\n")
    assert len(ended.output) == 65536


def test_a_program_that_is_not_there_raises(nobody: Account) -> None:
    with pytest.raises(FileNotFoundError):
        processes.run_as(nobody, ["/nonexistent"], environment={}, directory="/", time_limit=5)


def test_the_child_ends_with_its_parent(nobody: Account) -> None:
    marker = f"1{os.getpid()}.25"
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from ansible_collections.gpufleet.workstation.plugins.module_utils._release.processes import Account, run_as\n"
        f"account = Account('nobody', {nobody.uid}, {nobody.gid})\n"
        f"run_as(account, ['/bin/sleep', '{marker}'], environment={{}}, directory='/', time_limit=60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, *sys.path]) as parent:
        found = ""
        for _attempt in range(200):
            found = subprocess.run(
                ["pgrep", "-f", f"^/bin/sleep {marker}"], capture_output=True, text=True, check=False
            ).stdout
            if found:
                break
            time.sleep(0.05)
        assert found
        parent.kill()
    command = Path(f"/proc/{found.strip()}/cmdline")
    for _attempt in range(100):
        if not command.exists() or not command.read_bytes():  # gone, or dead and waiting to be collected
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent")


def test_whoever_stands_in_or_maps_a_directory_uses_it(tmp_path: Path) -> None:
    for name in ("stood", "opened", "free"):
        (tmp_path / name).mkdir()
    (tmp_path / "opened" / "file").write_text("x")
    directories = [str(tmp_path / name) for name in ("stood", "opened", "free")]
    with (
        subprocess.Popen(["/bin/sleep", "30"], cwd=directories[0]) as first,
        open(tmp_path / "opened" / "file") as file,
    ):
        with subprocess.Popen(["/bin/sleep", "30"], stdin=file) as second:
            found = processes.users_of(directories)
            second.kill()
        first.kill()
    assert found is not None
    assert [user.pid for user in found[directories[0]]] == [first.pid]
    assert [user.command for user in found[directories[0]]] == ["/bin/sleep 30"]
    assert second.pid in [user.pid for user in found[directories[1]]]
    assert found[directories[2]] == []


def test_a_neighbour_with_the_same_beginning_is_not_meant(tmp_path: Path) -> None:
    for name in ("1", "1.2"):
        (tmp_path / name).mkdir()
    with subprocess.Popen(["/bin/sleep", "30"], cwd=tmp_path / "1.2") as process:
        found = processes.users_of([str(tmp_path / "1"), str(tmp_path / "1.2")])
        process.kill()
    assert found is not None
    assert [len(users) for users in found.values()] == [0, 1]


def test_what_cannot_be_said_in_time_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_users_of", lambda _places: time.sleep(30))
    begin = time.monotonic()
    assert processes.users_of(["/nonexistent"], time_limit=0.2) is None
    assert time.monotonic() - begin < 5
