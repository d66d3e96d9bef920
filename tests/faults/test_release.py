"""Kill, starve, deceive and race the build of a release. Whatever happens: what served before serves at every instant, nothing that is
unproven or incomplete is ever current, and the next run gets there without anybody's help.

Runs as root on a machine that it may burden; `bin/test faults --seeds 100` for more random moments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import faulty
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import build, jobs, model, tool
from faulty import Host

pytestmark = pytest.mark.timeout(900)
fault = pytest.mark.fault

STEPS = (
    *("lock", "read", "prepare", "venv", "install", "record", "compile", "seal", "manifest", "prove", "sync", "stamp"),
    *("launchers", "switch", "prune"),
)
UNTIL_SWITCH = STEPS.index("switch")
YEAR = 365.0 * 24 * 3600


def cold(host: Host) -> None:
    """Let the next build fetch everything."""
    shutil.rmtree(host.root / ".cache" / "uv", ignore_errors=True)


def fails_then_converges(host: Host, **what: object) -> str:
    """The usual course: a run into the fault, then one without; what the first one said."""
    served, project = host.serve(), host.index.new_project()
    with host.watched() as watch:
        said = host.refuses(project, served, **what)
        new = host.converges(project)["release"]
    assert watch.served == [served, new]
    return said


# What the index sends


@pytest.mark.parametrize("place", ["cu128/torch/", "packages/"], ids=["torch-index", "package-index"])
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        pytest.param(
            "corrupt",
            "bad crc",
            marks=fault("corrupt wheel"),
            id="corrupt",
        ),
        pytest.param("short", "bad uncompressed size", marks=fault("truncated download"), id="short"),
        pytest.param(
            "cut",
            "end of file before message length reached",
            marks=fault("truncated download"),
            id="cut",
        ),
        pytest.param("stall", "network timeout", marks=fault("stalled download"), id="stalled"),
        pytest.param("other", "mismatch", marks=fault("hash mismatch (another sound wheel)"), id="other-wheel"),
        pytest.param("unavailable", "503", marks=fault("mirror down"), id="unavailable"),
    ],
)
def test_damaged_download_is_refused(host: Host, kind: str, says: str, place: str) -> None:
    cold(host)
    begin = time.monotonic()
    said = fails_then_converges(host, broken=f"{kind} {place}")
    assert says in said.lower()
    assert "install" in said
    assert "Correct what is named" not in said, "the message has no remedy of its own"
    assert time.monotonic() - begin < 120


@fault("mirror down")
def test_nobody_answers_at_the_mirror(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    cold(host)
    said = fails_then_converges(host, index_url=f"http://127.0.0.1:{port}/cu128")
    assert "Connection refused" in said or "error sending request" in said


@fault("stalled download")
def test_an_index_that_never_answers_is_given_up_at_the_time_limit(host: Host) -> None:
    cold(host)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        said = fails_then_converges(host, index_url=f"http://127.0.0.1:{silent.getsockname()[1]}/cu128", time_limit=3)
    assert "longer than the time limit of 3 s" in said
    assert time.monotonic() - begin < 60


# What the disk does


@contextlib.contextmanager
def mounted(root: Path, *arguments: str) -> Iterator[None]:
    """Something of its own as the root of all environments."""
    root.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(root)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


@pytest.mark.parametrize("step", ["install", "compile", "only compile", "stamp"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("space", marks=fault("disk full in mid-build")),
        pytest.param("inodes", marks=fault("inodes full in mid-build")),
    ],
)
def test_disk_that_fills_up_during_the_build(fresh_host: Host, kind: str, step: str) -> None:
    host, plenty = fresh_host, "size=200m,nr_inodes=100000"
    with mounted(host.root, "-t", "tmpfs", "-o", f"mode=755,{plenty}", "tmpfs"):
        served, project = host.serve(), host.index.new_project()
        with host.watched() as watch:
            relief = plenty if step.startswith("only ") else ""
            squeeze = {"step": step.split()[-1], "kind": kind, "root": str(host.root), "relief": relief}
            said = host.refuses(project, served, squeeze=squeeze)
            assert "No space left on device" in said
            assert host.state.releases.keys() == {served}
            subprocess.run(["mount", "-o", f"remount,{plenty}", str(host.root)], check=True)
            new = host.converges(project)["release"]
        assert watch.served == [served, new]


@fault("unwritable root")
@pytest.mark.parametrize("what", ["read-only", "immutable"])
def test_root_that_cannot_be_written(host: Host, what: str) -> None:
    served, project, root = host.serve(), host.index.new_project(), str(host.root)
    with host.watched() as watch:
        if what == "read-only":
            with mounted(host.root, "--bind", root):
                subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
                said = host.refuses(project, served)
            assert "mounted read-only" in said
        else:
            subprocess.run(["chattr", "+i", str(host.home / "releases")], check=True)
            try:
                said = host.refuses(project, served)
            finally:
                subprocess.run(["chattr", "-i", str(host.home / "releases")], check=True)
            assert "Operation not permitted" in said
        new = host.converges(project)["release"]
    assert watch.served == [served, new]


# What dies


@fault("SIGKILL of the module in each of its steps")
@pytest.mark.parametrize("die_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_death_in_any_step_changes_nothing_for_the_users(host: Host, step: str, die_after: bool) -> None:
    served, project = host.serve(), host.index.new_project({"few.py": "x = 1\n"})
    with host.watched() as watch:
        host.tally.runs += 1
        assert host.run(project, die_in=step, die_after=die_after) == {}
        host.tally.hit += 1
        host.check()
        if STEPS.index(step) < UNTIL_SWITCH:
            assert host.state.current == served
        new = host.converges(project)["release"]
    assert watch.served == [served, new]
    assert host.state.previous == served


@fault("SIGKILL of the module while it prunes")
def test_death_while_a_release_is_pruned(host: Host) -> None:
    """What is left of the old release can never serve, and the next run removes it."""
    first, second, third = (host.index.new_project({"few.py": "x = 1\n"}) for _ in range(3))
    served = host.converges(first)["release"]
    with host.watched() as watch:
        host.tally.runs += 1
        assert host.run(second, die_in="remove_tree") == {}
        host.tally.hit += 1
        assert list(host.state.releases.values()).count(None) == 1
        new = host.converges(second)["release"]
        newer = host.converges(third)["release"]
    assert watch.served == [served, new, newer]
    assert None not in host.state.releases.values()


@fault("SIGKILL of the module while it prunes")
def test_death_while_a_release_is_pruned_leaves_nothing_after_the_next_run(host: Host) -> None:
    host.converges(host.index.new_project({"few.py": "x = 1\n"}))
    project = host.index.new_project({"few.py": "x = 1\n"})
    assert host.run(project, die_in="remove_tree") == {}
    host.converges(project)
    assert None not in host.state.releases.values()


@contextlib.contextmanager
def naming(seed: int) -> Iterator[None]:
    """Say in a failure which seed makes it come again."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error


def kills(host: Host, seeds: int, strike: Callable[[subprocess.Popen[str], float], bool]) -> None:
    """Strike builds at random moments until as many hit as were asked for, and let the next run mend each.

    ``strike`` gets a part of the build, 0 to 1.
    """
    with host.watched() as watch:
        expected = [host.serve()]
        for seed in range(4 * seeds):
            if host.tally.hit == seeds:
                break
            chance = random.Random(seed).random()  # noqa: S311  # a seed makes a failure come again
            project = host.index.new_project()
            command = host.command(project)
            with naming(seed):
                host.tally.runs += 1
                process = host.start(command)
                if strike(process, chance):
                    host.tally.hit += 1
                else:
                    host.tally.late += 1
                host.finish(process)
                host.check()
                expected.append(host.converges(project)["release"])
    assert watch.served == expected
    assert host.tally.hit == seeds


@pytest.fixture
def duration(host: Host) -> float:
    """How long a build takes here and now, in seconds."""
    project = host.index.new_project()
    command = host.command(project)
    begin = time.monotonic()
    assert "error" not in host.finish(host.start(command))
    return time.monotonic() - begin


@fault("SIGKILL of the module at random moments")
def test_sigkill_of_the_module_at_random_moments(host: Host, seeds: int, duration: float) -> None:
    def strike(process: subprocess.Popen[str], chance: float) -> bool:
        time.sleep(duration * chance)
        return faulty.stop_and_kill(process.pid)

    kills(host, seeds, strike)


@fault("SIGKILL of uv at random moments")
def test_sigkill_of_uv_at_random_moments(host: Host, seeds: int) -> None:
    uv = str(host.directory / "uv")
    answer = host.run(host.index.new_project())
    span = sum(step["seconds"] for step in answer["steps"] if step["step"] in ("venv", "install"))

    def strike(process: subprocess.Popen[str], chance: float) -> bool:
        moment = 0.0
        while process.poll() is None:
            there = faulty.children(process.pid, uv)
            if there:
                moment = moment or time.monotonic() + span * chance
                if time.monotonic() >= moment and faulty.stop_and_kill(there[0]):
                    out, _err = process.communicate(timeout=faulty.PATIENCE)
                    said = json.loads(out).get("error", "")
                    if "SIGKILL" not in said:
                        host.tally.false_greens += 1
                    assert "SIGKILL" in said, out
                    return True
            time.sleep(0.002)
        return False

    kills(host, seeds, strike)


# The connection, the controller, and the process that builds


@pytest.fixture
def managed(fresh_host: Host) -> Iterator[Host]:
    """A host on which the real module builds, with its worker and its account."""
    account_before = has_account()
    target = Path(tool.installed(fresh_host.layout.tools))
    target.parent.mkdir(parents=True)
    shutil.copy(fresh_host.directory / "uv", target)
    answer = execute(fresh_host, "")
    assert "failed" not in answer, answer["msg"]
    yield fresh_host
    if not account_before:
        assert build.remove_build_account() is None


def has_account() -> bool:
    """Whether this machine has the account that builds."""
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(model.BUILD_ACCOUNT))
    return False


def module(host: Host, project: str, follow: str = "") -> subprocess.Popen[str]:
    """Start the module, as one connection does."""
    request = json.loads(host.command(project)[-1])["request"]
    request["disk_required"] = request.pop("disk_required_mib")
    root, name = request.pop("layout")
    options = {**request, "root": root, "name": name, "follow": follow, "follow_seconds": 5.0}
    return host.start([sys.executable, str(faulty.ROOT / "tests/faults/module_driver.py"), json.dumps(options)])


def execute(host: Host, project: str) -> dict[str, Any]:
    """One task: the module, again while its build goes on, as the action plugin does it."""
    warnings: list[Any] = []
    follow = ""
    while True:
        answer = host.finish(module(host, project, follow))
        warnings += answer.get("warnings") or []
        if not answer.get("running"):
            return {**answer, "warnings": warnings}
        follow = answer["follow"]


def mended(host: Host, project: str) -> dict[str, Any]:
    """The next run, which has to get there; its answer."""
    host.tally.recoveries += 1
    answer = execute(host, project)
    assert "failed" not in answer, answer["msg"]
    assert host.state.current == answer["release"]
    assert host.state.stamped[answer["release"]]["spec"]["requirements"] == [project]
    assert None not in host.state.releases.values()
    host.check()
    host.tally.converged += 1
    return answer


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGHUP, marks=fault("ssh drop (SIGHUP to all that the connection started)"), id="ssh-drop"),
        pytest.param(
            signal.SIGKILL, marks=fault("controller kill (SIGKILL to all that it started)"), id="controller-kill"
        ),
    ],
)
def test_build_goes_on_without_who_asked_for_it(managed: Host, seeds: int, number: signal.Signals) -> None:
    """At a random moment after the worker has begun; it is adopted by the next run, or its work is found done. It builds once."""
    host, adopted = managed, 0
    with host.watched() as watch:
        expected = [host.serve()]
        for seed in range(max(3, seeds // 2)):
            project = host.index.new_project()
            with naming(seed):
                host.tally.runs += 1
                process = module(host, project)
                worker = wait_for_worker(host, process)
                time.sleep(random.Random(seed).uniform(0.0, 0.7))  # noqa: S311  # a seed makes a failure come again
                if process.poll() is None:
                    os.killpg(process.pid, number)
                host.finish(process)
                if process.returncode != -number:
                    host.tally.late += 1
                else:
                    host.tally.hit += 1
                    assert worker.alive() or host.state.current != expected[-1]
                host.check()
                answer = mended(host, project)
                adopted += "adopted the build" in str(answer["warnings"])
                assert "." not in answer["release"].partition("-cu128-")[2], "it was built twice"
                expected.append(answer["release"])
    assert watch.served == expected
    assert host.tally.hit > 0
    assert adopted > 0


@dataclasses.dataclass
class Worker:
    """The process that builds, as its status names it."""

    pid: int
    job: jobs.Job

    def alive(self) -> bool:
        """Whether it is still that process."""
        return self.job.running


def wait_for_worker(host: Host, process: subprocess.Popen[str]) -> Worker:
    """The worker that the module started."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        job = jobs.find(host.layout)
        if job is not None and job.running:
            return Worker(job.status["pid"], job)
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError("no worker began within 60 s")


@fault("SIGKILL of the worker at random moments")
def test_sigkill_of_the_worker(managed: Host, seeds: int) -> None:
    host = managed
    with host.watched() as watch:
        expected = [host.serve()]
        for seed in range(seeds):
            project = host.index.new_project()
            with naming(seed):
                host.tally.runs += 1
                process = module(host, project)
                worker = wait_for_worker(host, process)
                time.sleep(random.Random(seed).uniform(0.0, 1.5))  # noqa: S311  # a seed makes a failure come again
                hit = faulty.stop_and_kill(worker.pid)
                said = host.finish(process)
                host.tally.hit += hit
                host.tally.late += not hit
                if hit and not said.get("failed"):
                    # It may have left its result just before. Then that has to be the truth.
                    assert host.state.current == said["release"]
                if said.get("failed"):
                    assert "ended at the step" in said["msg"]
                host.check()
                expected.append(mended(host, project)["release"])
    assert watch.served == expected
    assert host.tally.hit > 0


# Simulated power loss


@fault("power loss (simulated: what the disk held is mounted again)")
@pytest.mark.parametrize(
    ("step", "die_after"),
    [("install", True), ("stamp", False), ("stamp", True), ("switch", False), ("switch", True)],
    ids=["in-the-build", "before-the-stamp", "after-the-stamp", "before-the-switch", "after-the-switch"],
)
def test_power_loss(fresh_host: Host, step: str, die_after: bool) -> None:
    """An ext4 on a loop device, which writes nothing by itself. At the moment of the loss the device is copied: what the kernel had only in
    memory is not in the copy, whose journal is then replayed as at a boot.
    """
    host = fresh_host
    disk, copy = host.directory / "disk", host.directory / "disk-after"
    disk.touch()
    os.truncate(disk, 192 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-N", "80000", str(disk)], check=True)
    options = ("-o", "loop,commit=300")
    with mounted(host.root, *options, str(disk)):
        served, project = host.serve(), host.index.new_project()
        with host.watched() as watch:
            host.tally.runs += 1
            assert host.run(project, die_in=step, die_after=die_after) == {}
            (host.root / ".unsynced").write_text("in memory only")
            subprocess.run(["cp", "--sparse=always", str(disk), str(copy)], check=True)
            host.tally.hit += 1
        before = host.state.current
    assert watch.served in ([served], [served, before])
    with mounted(host.root, *options, str(copy)):
        assert not (host.root / ".unsynced").exists() or not (host.root / ".unsynced").read_text()
        assert host.state.current == (before if die_after and step == "switch" else served)
        host.check()
        with host.watched():
            host.converges(project)


# What somebody damages


def damage(release: Path, how: str) -> None:
    """Do to a release what nobody should; what its users import still works, so that it can serve on."""
    library = next(release.glob("lib/python3*/site-packages/nvidia/tiny/lib/libtiny.so"))
    if how == "truncated":
        os.truncate(library, 10)
    elif how == "removed":
        library.unlink()
    elif how == "added":
        (library.parents[3] / "torch" / "extra.py").write_text("x = 1\n")
    else:
        with library.open("r+b") as file:
            file.write(b"TINY")


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("truncated", marks=fault("damaged release")),
        pytest.param("removed", marks=fault("damaged release")),
        pytest.param("rewritten", marks=fault("damaged release")),
        pytest.param("added", marks=fault("added file")),
    ],
)
def test_damaged_release_is_replaced_and_never_passes_again(host: Host, how: str) -> None:
    """The first run replaces it; going back to it is refused, and it is not repaired in place."""
    project = host.index.new_project()
    served = host.converges(project)["release"]
    release = host.home / "releases" / served
    checked = {"integrity": "hashes"} if how == "rewritten" else {}
    with host.watched() as watch:
        host.tally.runs += 1
        damage(release, how)
        host.tally.hit += 1
        seen = sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in release.rglob("*"))
        answer = host.converges(project, **checked)
        assert answer["changed"]
        assert answer["release"] != served
        assert f"{served} cannot serve" in answer["what"]
        assert seen == sorted(
            (str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in release.rglob("*")
        )
        said = host.run(project, state="previous")
        host.tally.false_greens += "error" not in said
        assert f"{served} cannot serve" in said["error"]
    assert watch.served == [served, answer["release"]]


@fault("poisoned cache")
@pytest.mark.parametrize("how", ["other-content", "shorter", "removed"])
def test_poisoned_cache_is_dropped(host: Host, how: str) -> None:
    cold(host)
    served = host.converges(host.index.new_project())["release"]
    project = host.index.new_project()
    with host.watched() as watch:
        host.tally.runs += 1
        poisoned = 0
        for path in (host.root / ".cache" / "uv").rglob("torch/version.py"):
            text = path.read_text()
            path.unlink()  # the release that shares the file keeps it as it was
            if how != "removed":
                path.write_text(text.replace("tiny", "evil") if how == "other-content" else text[:-20])
            poisoned += 1
        assert poisoned
        host.tally.hit += 1
        answer = host.converges(project)
        assert "uv's cache was damaged and has been dropped" in str(answer["warnings"])
    assert watch.served == [served, answer["release"]]


@fault("dangling interpreter")
def test_interpreter_that_vanishes(fresh_host: Host) -> None:
    """As after an upgrade of the system's Python: the manifest still matches, since the link's text is the same. Nothing can serve from
    such a release; from the switch to the one that replaces it on, everything has to.
    """
    host = fresh_host
    python = host.directory / "python3"
    python.symlink_to(str(faulty.tiny.system_python()))
    served = host.run("", interpreter=str(python))["release"]
    with host.watched(tolerate=True) as watch:
        host.tally.runs += 1
        python.unlink()
        host.tally.hit += 1
        answer = host.converges("")
        converged = time.time()
        time.sleep(2.5)
    assert watch.last_failure < converged
    assert "interpreter" in answer["what"]
    assert answer["release"] == served + ".2"
    said = host.run("", state="previous")
    assert "its interpreter" in said["error"]


@pytest.fixture
def trap() -> Iterator[Path]:
    """A directory that everybody may write, for what hostile code wants to tell."""
    path = Path("/var/tmp/gpufleet-hostile")  # fixed, because it is part of a wheel
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


HOSTILE = (
    "import os, glob, sys; open({trap!r} + '/' + str(os.geteuid()), 'a').write('x'); "
    "[os.chmod(p, 0o777) for p in glob.glob(sys.prefix + '/lib/python*/site-packages/torch/__init__.py') if os.geteuid() == 0 "
    "or os.stat(p).st_uid == os.geteuid()]; "
    "[open({trap!r} + '/wrote', 'a') for p in [sys.prefix, {cache!r}, sys.prefix + '/bin'] if os.access(p, os.W_OK)]\n"
)


@fault("hostile .pth")
def test_hostile_pth_never_runs_as_root_and_cannot_write(host: Host, trap: Path) -> None:
    served = host.serve()
    line = HOSTILE.format(trap=str(trap), cache=str(host.root / ".cache"))
    project = host.index.new_project({"hostile.pth": line, "hostile_package.py": ""})
    with host.watched() as watch:
        host.tally.runs += 1
        new = host.converges(project)["release"]
        host.tally.hit += 1
        ran = {path.name for path in trap.iterdir()}
        host.run(project, state="previous")
        again = host.run(project, state="present")["release"]
    assert "0" not in ran | {path.name for path in trap.iterdir()}
    assert "wrote" not in ran
    assert ran, "it never ran, so nothing was tested"
    assert watch.served == [served, new, served, again]


@fault("hostile .pth")
def test_hostile_pth_that_hangs_is_ended(host: Host) -> None:
    served, good = host.serve(), host.index.new_project()
    project = host.index.new_project({"hostile.pth": "import time; time.sleep(3600)\n", "hostile_package.py": ""})
    with host.watched() as watch:
        host.refuses(project, served, proof_time_limit=3)
        new = host.converges(good)["release"]
    assert watch.served == [served, new]


# Who comes at the same time, and when


@fault("second controller")
def test_two_controllers_at_once_build_once(host: Host) -> None:
    served, project = host.serve(), host.index.new_project()
    command = host.command(project)
    with host.watched() as watch:
        host.tally.runs += 1
        both = [host.start(command), host.start(command)]
        answers = [host.finish(process) for process in both]
        host.tally.hit += 1
        new = host.converges(project)["release"]
    assert sorted(answer["changed"] for answer in answers) == [False, True]
    assert {answer["release"] for answer in answers} == {new}
    assert watch.served == [served, new]


@fault("second controller")
def test_second_controller_that_may_not_wait_says_who_is_there(host: Host) -> None:
    served, first, second = host.serve(), host.index.new_project(), host.index.new_project()
    commands = [host.command(first), host.command(second, lock_timeout=0)]
    with host.watched() as watch:
        host.tally.runs += 1
        process = host.start(commands[0])
        release = host.home / "releases"
        while process.poll() is None and len(list(release.iterdir())) == len(host.state.stamped):
            time.sleep(0.01)
        said = host.finish(host.start(commands[1]))
        host.tally.hit += 1
        one = host.finish(process)["release"]
        two = host.converges(second)["release"]
    assert "is being changed by another run" in said["error"]
    assert f"process {process.pid}" in said["error"]
    assert watch.served == [served, one, two]


@fault("clock a year off (simulated: the module's own clock)")
@pytest.mark.parametrize("off", [YEAR, -YEAR], ids=["ahead", "behind"])
def test_clock_a_year_off(host: Host, off: float) -> None:
    """What is built with the wrong clock serves, and the next releases follow it in the right order."""
    served, wrong, right, last = host.serve(), *(host.index.new_project() for _ in range(3))
    with host.watched() as watch:
        host.tally.runs += 1
        odd = host.run(wrong, clock=off)
        host.tally.hit += 1
        assert odd["previous"] == served
        year = int(host.state.stamped[odd["release"]]["built_at"][:4])
        assert year in (time.gmtime(time.time() + off).tm_year, time.gmtime(time.time() + off + 60).tm_year)
        new = host.converges(right)
        assert new["previous"] == odd["release"]
        assert served in new["removed"]
        newest = host.converges(last)
        assert odd["release"] in newest["removed"]
    assert watch.served == [served, odd["release"], new["release"], newest["release"]]
