"""The program that a host's own timer runs: when it proves, when it leaves a stamp alone, and what it writes."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import stamp, timer

COLLECTIONS = Path(__file__).resolve().parents[5] / "collections"
AT = 1_795_000_000.0
HOUR = 3600.0
PYTHON = "/opt/gpufleet/envs/base/current/bin/python"
ENVIRONMENT = {"name": "base", "python": PYTHON, "user": "root", "sm": ["sm_120"]}
DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "environments": [ENVIRONMENT],
    "root": "/opt/gpufleet/envs",
    "level": "static",
    "max_age": 168,
    "time_limit": None,
    "gpus": None,
    "textfile_directory": "/var/lib/node",
}
SPEC = {"spec": {"torch": "2.9.1+cu128", "companions": {"torchvision": "0.24.1+cu128"}}}
OBSERVATION: dict[str, Any] = {"gpus": [], "driver": {"processes": []}, "health": {"xid": [], "missing_gpus": []}}
GPU = {"uuid": "GPU-1", "pci_address": "0000:01:00.0", "name": "NVIDIA GeForce RTX 5070"}
TRAINING = {"pid": 812, "command": "python", "kind": "compute", "gpus": [GPU["pci_address"]]}
PASSED = {"id": "torch.import", "status": "passed", "code": None, "evidence": "torch 2.9.1+cu128"}


class Machine:
    """A host below a folder, its clock, and a proof that answers as a test says."""

    def __init__(self, root: Path) -> None:
        self.root, self.host = root, Host(root=str(root))
        self.clock = AT
        self.settings = timer.settings_of(DOCUMENT)
        self.observation = copy.deepcopy(OBSERVATION)
        self.verdict = "passed"
        self.proofs: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []
        self.said: list[str] = []
        self.waited: list[float] = []

    def prove(self, environments: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        self.proofs.append((environments, options))
        check = {**PASSED, "status": self.verdict}
        result = {
            "verdict": self.verdict, "level": options["level"], "reason": "", "remedy": "", "checks": [check], "gpus": [],
            "proven": options["level"] if self.verdict == "passed" else None, "torch": {"version": "2.9.1+cu128"},
        }  # fmt: skip
        return {"environments": [{**result, "name": environment["name"]} for environment in environments]}

    def pause(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.clock += seconds

    def tick(self, hours: float = 0.0, **settings: Any) -> int:
        """Some hours later; how many environments it proved."""
        before = len(self.proofs)
        self.clock += hours * HOUR
        self.said.clear()
        timer.tick(
            self.host, self.settings._replace(**settings), self.prove, lambda _host, _request: self.observation,
            self.said.append, lambda: self.clock, self.pause,
        )  # fmt: skip
        return sum(len(environments) for environments, _options in self.proofs[before:])

    @property
    def textfile(self) -> Path:
        return self.root / "var/lib/node/gpufleet_host.prom"

    def metric(self, name: str) -> dict[str, str]:
        """Labels and values of a metric in the textfile."""
        rows = [line for line in self.textfile.read_text(encoding="utf-8").splitlines() if line.startswith(name)]
        return {line.rpartition(" ")[0][len(name) :]: line.rpartition(" ")[2] for line in rows}

    def stamp(self) -> dict[str, Any] | None:
        return stamp.read(self.host, "base")

    def reboot(self) -> None:
        (self.root / "proc/sys/kernel/random/boot_id").write_text("boot-2\n")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The program is a process of its own, and keeps what it does with signals."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    """A host with a release of the environment base and without a driver; whoever runs the tests is root to it."""
    monkeypatch.setattr(stamp, "OWNER", os.getuid())
    home = "opt/gpufleet/envs/base"
    for path, text in {
        f"{home}/releases/r1/bin/python": "",
        f"{home}/stamps/r1.json": json.dumps(SPEC),
        "etc/gpufleet/proof.json": json.dumps(DOCUMENT),
        "var/lib/dpkg/status": "",
        "proc/sys/kernel/random/boot_id": "boot-1\n",
        "proc/locks": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    os.utime(tmp_path / "var/lib/dpkg/status", (AT - HOUR, AT - HOUR))
    for folder in ("run", "var/lib/node"):
        (tmp_path / folder).mkdir()
    (tmp_path / home / "current").symlink_to("releases/r1")
    return Machine(tmp_path)


# ---- what it proves -------------------------------------------------------------------------------------------------


def test_it_proves_once_keeps_the_stamp_and_writes_the_metrics_every_time(machine: Machine) -> None:
    assert machine.tick() == 1
    assert machine.said[0] == "base: is proven now: no proof is on record"
    first = machine.stamp()
    assert first is not None
    assert machine.tick(hours=1) == 0
    assert machine.said == ["base: proven at level static"]
    assert machine.stamp() == first
    assert machine.metric("gpufleet_proof_passed") == {'{environment="base",level="static"}': "1"}
    assert machine.metric("gpufleet_proof_timestamp_seconds") == {'{environment="base"}': str(int(AT))}
    assert machine.metric("gpufleet_host_checked_timestamp_seconds") == {"": str(int(AT + HOUR))}


def test_after_a_restart_of_the_host_it_proves_again(machine: Machine) -> None:
    machine.tick()
    machine.reboot()
    assert machine.tick() == 1
    assert machine.said[0] == "base: is proven now: since its proof: rebooted"


def test_a_new_release_is_expected_to_hold_what_it_was_built_of_not_what_served_when_the_role_ran(
    machine: Machine,
) -> None:
    machine.tick()
    assert machine.proofs[0][0][0]["expect"] == SPEC["spec"]
    home = machine.root / "opt/gpufleet/envs/base"
    (home / "releases/r2/bin").mkdir(parents=True)
    (home / "stamps/r2.json").write_text(json.dumps({"spec": {"torch": "2.10.0+cu130", "companions": {}}}))
    (home / "current").unlink()
    (home / "current").symlink_to("releases/r2")
    assert machine.tick() == 1
    assert machine.proofs[1][0][0]["expect"] == {"torch": "2.10.0+cu130", "companions": {}}


def test_the_proof_gets_what_the_role_wrote(machine: Machine) -> None:
    (machine.root / "dev").mkdir()
    (machine.root / "dev/nvidia0").touch()
    machine.tick(level="quick", time_limit=420, gpus=["0000:01:00.0"])
    environments, options = machine.proofs[0]
    assert environments == [{**ENVIRONMENT, "expect": SPEC["spec"]}]
    assert options == {"level": "quick", "sm": [], "gpus": ["0000:01:00.0"], "time_limit": 420}


def test_a_failure_is_kept_told_by_the_metrics_and_tried_again(machine: Machine) -> None:
    machine.tick()
    machine.reboot()
    machine.verdict = "failed"
    assert machine.tick() == 1
    assert machine.metric("gpufleet_proof_passed") == {'{environment="base",level="static"}': "0"}
    machine.verdict = "passed"
    assert machine.tick(hours=1) == 1
    assert machine.metric("gpufleet_proof_passed") == {'{environment="base",level="static"}': "1"}


def test_a_stamp_that_could_be_somebody_elses_counts_nothing(machine: Machine) -> None:
    machine.tick()
    (machine.root / "var/lib/gpufleet/proof/base.json").chmod(0o666)
    assert machine.tick() == 1


@pytest.mark.parametrize("broken", ["{}", "[]", '{"spec": {"torch": null}}', "no JSON", None])
def test_an_environment_whose_release_says_nothing_is_not_proven_and_the_metrics_say_so(
    machine: Machine, broken: str | None
) -> None:
    path = machine.root / "opt/gpufleet/envs/base/stamps/r1.json"
    path.write_text(broken) if broken is not None else path.unlink()
    assert machine.tick() == 0
    assert machine.said[-1].startswith("base: it cannot be proven: ")
    assert machine.metric("gpufleet_proof_passed") == {'{environment="base",level=""}': "0"}


# ---- when it leaves a stamp alone -----------------------------------------------------------------------------------


NOW: dict[str, Any] = {
    "release": "r1", "release_digest": "a" * 64, "variables": None, "driver": "580.95.05", "flavor": "open",
    "userspace": "580.95.05", "boot_id": "boot-1", "sm": ["sm_120"], "wish": "b" * 64,
    "gpus": [{**GPU, "mig": "not_applicable", "compute_mode": "default"}], "at": "2026-11-22T19:00:00Z",
}  # fmt: skip


def seen(level: str = "quick", verdict: str = "passed", events: tuple[Any, ...] = (), **now: Any) -> timer.Seen:
    """A proof of 2026-11-22T19:00:00Z, and the host as it is."""
    result = {
        "name": "base", "verdict": verdict, "level": level, "proven": level, "reason": "", "remedy": "", "torch": None,
        "checks": [PASSED], "gpus": [] if level == "static" else [{**GPU, "verdict": verdict, "checks": []}],
    }  # fmt: skip
    document = stamp.document(result, NOW)
    return timer.Seen(timer.Environment(**ENVIRONMENT), document, {**NOW, **now}, {}, list(events), None)


SETTINGS = timer.settings_of({**DOCUMENT, "level": "quick", "max_age": 100})
XID = {
    "this_boot": True, "action": "reset", "last_at": "2026-11-22T20:00:00Z", "number": 79, "title": "fell off the bus",
    "pci_address": GPU["pci_address"],
}  # fmt: skip
NOT_COVERED = seen(boot_id="boot-2")


@pytest.mark.parametrize(
    ("proof", "idle", "busy"),
    [
        pytest.param(seen(), None, None, id="it covers"),
        pytest.param(seen("full"), None, None, id="it covers more"),
        pytest.param(seen(at="2026-11-25T22:00:00Z"), "is older than 75 hours", None, id="it is renewed before it ends"),
        pytest.param(seen(at="2026-11-27T00:00:00Z"), "is older than 75", "is older than 75 hours", id="it is too old"),
        pytest.param(seen("static"), "level quick is wanted", None, id="more can be proven when the GPU is idle"),
        pytest.param(NOT_COVERED, "rebooted", "rebooted", id="the host was restarted"),
        pytest.param(NOT_COVERED._replace(stamp={}), "no proof is on record", "no proof is on record", id="none"),
        pytest.param(seen(verdict="failed"), "its last proof failed", None, id="a failure is no news on a busy GPU"),
        pytest.param(seen(events=(XID,)), "Xid 79", "Xid 79", id="a GPU fell off since"),
        pytest.param(seen(events=({**XID, "action": "restart_app"},)), None, None, id="a program failed since"),
        pytest.param(seen()._replace(problem="it cannot be proven: x"), None, None, id="it cannot be proven"),
    ],
)  # fmt: skip
def test_what_is_due_where_gpus_are_idle_and_where_they_are_busy(
    proof: timer.Seen, idle: str | None, busy: str | None
) -> None:
    for why, told in ((timer.due(proof, SETTINGS, False), idle), (timer.due(proof, SETTINGS, True), busy)):
        assert why is None if told is None else told in str(why)


def test_a_busy_gpu_keeps_the_stamp_and_is_proven_when_it_is_idle(machine: Machine) -> None:
    machine.tick()
    before = machine.stamp()
    (machine.root / "dev").mkdir()
    (machine.root / "dev/nvidia0").touch()
    machine.observation["driver"]["processes"] = [TRAINING]
    assert machine.tick(level="quick") == 0
    assert machine.said[0] == "no GPU is proven on: python (812) computes"
    assert machine.stamp() == before
    assert machine.metric("gpufleet_proof_passed") == {'{environment="base",level="static"}': "0"}
    machine.observation["driver"]["processes"] = []
    assert machine.tick(level="quick") == 1


@pytest.mark.parametrize(
    ("change", "busy"),
    [
        ({}, True),
        ({"kind": "graphics"}, False),
        ({"gpus": []}, True),
        ({"gpus": ["0000:02:00.0"]}, False),
        ({"gpus": ["0000:02:00.0", GPU["pci_address"]]}, True),
    ],
)
def test_only_who_computes_on_a_gpu_that_counts_makes_it_busy(
    machine: Machine, change: dict[str, Any], busy: bool
) -> None:
    (machine.root / "dev").mkdir()
    (machine.root / "dev/nvidia0").touch()
    observation = {**OBSERVATION, "driver": {"processes": [{**TRAINING, **change}]}}
    settings = machine.settings._replace(gpus=[GPU["pci_address"]])
    assert (timer.why_no_gpu(machine.host, settings, observation) is not None) is busy


def test_where_nothing_can_compute_the_static_proof_is_made_once(machine: Machine) -> None:
    machine.tick()
    assert machine.tick(hours=1, level="quick") == 0
    assert machine.said[0] == "no GPU is proven on: there is no NVIDIA GPU on this host"


def test_while_another_proof_runs_nothing_is_proven_and_the_metrics_are_written(machine: Machine) -> None:
    with stamp.alone(machine.host):
        assert machine.tick() == 0
    assert "another proof runs on this host" in machine.said[0]
    assert machine.textfile.exists()
    assert machine.tick() == 1


def test_who_proves_in_a_playbook_waits_for_the_timer(machine: Machine) -> None:
    with open(machine.root / "run/gpufleet-proof.lock", "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        begin = time.monotonic()
        with pytest.raises(stamp.NotAlone), stamp.alone(machine.host, 0.5):
            pytest.fail("two at once")
        assert 0.5 <= time.monotonic() - begin < 5
    with stamp.alone(machine.host, 0.5):
        pass


# ---- packages -------------------------------------------------------------------------------------------------------


def test_it_waits_until_packages_have_settled(machine: Machine) -> None:
    os.utime(machine.root / "var/lib/dpkg/status", (AT - 3, AT - 3))
    assert machine.tick() == 1
    assert 25 <= sum(machine.waited) <= 30


def test_an_update_that_does_not_end_postpones_the_proof(machine: Machine, monkeypatch) -> None:
    held = [{"path": "/var/lib/dpkg/lock", "holder": "unattended-upgr (process 812)"}]
    monkeypatch.setattr(timer.health, "locks", lambda _host, _unknown: held)
    assert machine.tick() == 0
    assert (
        machine.said[0]
        == "nothing was proven: unattended-upgr (process 812) changes packages; the next run tries again"
    )
    assert sum(machine.waited) == 600
    assert machine.textfile.exists()


def test_a_clock_that_was_set_back_does_not_make_it_wait(machine: Machine) -> None:
    os.utime(machine.root / "var/lib/dpkg/status", (AT + HOUR, AT + HOUR))
    assert machine.tick() == 1
    assert machine.waited == []


# ---- the textfile ---------------------------------------------------------------------------------------------------


def test_the_textfile_is_replaced_in_one_step_and_readable_whatever_the_umask(machine: Machine) -> None:
    old = os.umask(0o077)
    try:
        machine.tick()
        before = machine.textfile.stat().st_ino
        machine.tick()
    finally:
        os.umask(old)
    assert machine.textfile.stat().st_ino != before
    assert machine.textfile.stat().st_mode & 0o7777 == 0o644
    assert [path.name for path in machine.textfile.parent.iterdir()] == ["gpufleet_host.prom"]


def test_a_link_that_somebody_put_into_the_folder_is_not_followed(machine: Machine) -> None:
    precious = machine.root / "precious"
    precious.write_text("kept")
    (machine.textfile.parent / f".gpufleet_host.prom.{os.getpid()}").symlink_to(precious)
    machine.textfile.symlink_to(precious)
    machine.tick()
    assert precious.read_text() == "kept"
    assert not machine.textfile.is_symlink()


def test_without_its_folder_it_fails_and_has_proven_all_the_same(machine: Machine) -> None:
    machine.textfile.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        machine.tick()
    assert machine.stamp() is not None


def test_a_stamp_that_cannot_be_deleted_is_an_error_and_the_metrics_are_written(machine: Machine, monkeypatch) -> None:
    def refuse(*_arguments: Any) -> None:
        raise OSError(30, "Read-only file system", "/var/lib/gpufleet/proof/base.json")

    monkeypatch.setattr(stamp, "forget", refuse)
    with pytest.raises(OSError, match="Read-only"):
        machine.tick()
    assert machine.metric("gpufleet_proof_passed") == {'{environment="base",level=""}': "0"}
    assert machine.proofs == []


# ---- configuration --------------------------------------------------------------------------------------------------


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in DOCUMENT.items() if name != key}


@pytest.mark.parametrize(
    "document",
    [
        None, [], "x", {}, *(without(key) for key in DOCUMENT), {**DOCUMENT, "more": 1}, {**DOCUMENT, "schema": 2},
        {**DOCUMENT, "environments": {}}, {**DOCUMENT, "environments": ["base"]},
        *({**DOCUMENT, "environments": [{**ENVIRONMENT, key: wrong}]}
          for key, wrong in (("name", None), ("python", "python"), ("python", 1), ("user", 0), ("sm", "sm_120"), ("sm", [120]))),
        *({**DOCUMENT, key: wrong} for key, wrong in (
            ("root", "envs"), ("level", "thorough"), ("level", None), ("max_age", 0), ("max_age", True), ("max_age", "168"),
            ("time_limit", 0), ("time_limit", 1.5), ("gpus", "0000:01:00.0"), ("textfile_directory", "node"),
            ("textfile_directory", "/a\0b"))),
    ],
)  # fmt: skip
def test_a_configuration_that_the_role_would_not_write_is_refused(document: Any) -> None:
    with pytest.raises(timer.Unusable):
        timer.settings_of(document)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_configuration_that_others_can_write_names_no_program_to_run(machine: Machine, mode: int, capsys) -> None:
    (machine.root / "etc/gpufleet/proof.json").chmod(mode)
    assert timer.main(machine.host) == 1
    assert "/etc/gpufleet/proof.json is no regular file of root's that nobody else can write" in capsys.readouterr().err
    assert not machine.textfile.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100000, None])
def test_a_configuration_that_cannot_be_read_is_named(machine: Machine, content: bytes | None, capsys) -> None:
    path = machine.root / "etc/gpufleet/proof.json"
    path.write_bytes(content) if content is not None else path.unlink()
    assert timer.main(machine.host) == 1
    assert "/etc/gpufleet/proof.json" in capsys.readouterr().err


# ---- the program ----------------------------------------------------------------------------------------------------


PACKAGE = "ansible_collections.gpufleet.workstation.plugins.module_utils"
PACK = f"""
import sys
from {PACKAGE}._proof import timer
from {PACKAGE}._release import bundle
sys.stdout.buffer.write(bundle.packed(sys.argv[1]))
"""
ENTRY = f"""
import sys
from {PACKAGE}._probe.host import Host
from {PACKAGE}._proof import stamp, timer
stamp.OWNER = int(sys.argv[2])
sys.exit(timer.main(Host(root=sys.argv[1])))
"""


def packed() -> bytes:
    """The program, made in a process that has imported nothing else, as the module's."""
    environment = {**os.environ, "PYTHONPATH": str(COLLECTIONS), "PYTHONHASHSEED": "random"}
    return subprocess.run([sys.executable, "-c", PACK, ENTRY], env=environment, check=True, capture_output=True).stdout


def test_the_same_code_makes_the_same_program() -> None:
    assert packed() == packed()


@pytest.fixture
def program(machine: Machine, environment: Any, tmp_path: Path) -> list[str]:
    """The packed program, for a host whose environment base holds a pretended torch that really runs."""
    home = environment.root / "envs/base"
    (home / "releases").mkdir(parents=True)
    shutil.move(str(environment.root / "bin"), str(home / "releases/r1/bin"))
    for name in ("lib", "pyvenv.cfg"):
        shutil.move(str(environment.root / name), str(home / "releases/r1" / name))
    (home / "current").symlink_to("releases/r1")
    inside = machine.root / str(home)[1:]
    (inside / "releases/r1/bin").mkdir(parents=True)
    (inside / "stamps").mkdir()
    (inside / "stamps/r1.json").write_text(json.dumps({"spec": {"torch": "2.9.1+cu128", "companions": {}}}))
    (inside / "current").symlink_to("releases/r1")
    row = {**ENVIRONMENT, "python": str(home / "current/bin/python")}
    document = {**DOCUMENT, "environments": [row], "root": str(environment.root / "envs")}
    (machine.root / "etc/gpufleet/proof.json").write_text(json.dumps(document))
    path = tmp_path / "proof"
    path.write_bytes(packed())
    return [sys.executable, "-I", "-B", str(path), str(machine.root), str(os.getuid())]


def test_the_program_runs_alone_and_proves(machine: Machine, program: list[str]) -> None:
    done = subprocess.run(
        program, cwd="/", env={"LC_ALL": "C"}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "base: proven at level static" in done.stdout
    kept = machine.stamp()
    assert kept is not None
    assert (kept["verdict"], kept["torch"]) == ("passed", "2.9.1+cu128")
    assert machine.metric("gpufleet_proof_passed") == {'{environment="base",level="static"}': "1"}


def test_a_wrong_torch_fails_the_proof_and_not_the_program(machine: Machine, environment, program: list[str]) -> None:
    site = next((environment.root / "envs/base/releases/r1/lib").glob("python*/site-packages"))
    text = (site / "torch/__init__.py").read_text(encoding="ascii")
    (site / "torch/__init__.py").write_text(text.replace("2.9.1+cu128", "2.8.0+cu128"), encoding="ascii")
    done = subprocess.run(program, cwd="/", env={}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "its last proof failed" in done.stdout
    assert machine.metric("gpufleet_proof_passed") == {'{environment="base",level="static"}': "0"}


def test_ended_by_systemd_it_ends_what_it_started_and_writes_the_metrics(
    machine: Machine, environment, program: list[str]
) -> None:
    site = next((environment.root / "envs/base/releases/r1/lib").glob("python*/site-packages"))
    begun = environment.root / "begun"
    environment.root.chmod(0o777)  # the proof runs as an account of its own
    (site / "torch/__init__.py").write_text(
        f"import os, time\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n", encoding="ascii"
    )
    running = subprocess.Popen(program, cwd="/", env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not (begun.exists() and begun.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 1
    assert not Path(f"/proc/{begun.read_text()}").exists()
    assert machine.stamp() is None
    assert machine.metric("gpufleet_proof_passed") == {'{environment="base",level=""}': "0"}
