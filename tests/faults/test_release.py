"""Kill, starve and race the build of a release. Whatever happens: what served before serves at every instant, nothing that is
unproven or incomplete is ever current, and the next run gets there without anybody's help.

Runs as root on a machine that it may burden; `pytest tests/faults --seeds 100` for more random moments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "collections"))
sys.path.insert(0, str(ROOT / "tests/unit/plugins/module_utils/_release"))

import tiny_index as unit  # noqa: E402
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import model, store  # noqa: E402

pytestmark = pytest.mark.timeout(900)

STEPS = (
    *("lock", "read", "prepare", "venv", "install", "record", "compile", "seal", "manifest", "prove", "sync", "stamp"),
    *("launchers", "switch", "prune"),
)


@dataclasses.dataclass
class Fleet:
    """One host's root with an index behind it, driven through processes of its own."""

    directory: Path
    url: str

    @property
    def home(self) -> Path:
        return self.directory / "envs" / "base"

    @property
    def layout(self) -> model.Layout:
        return model.Layout(str(self.directory / "envs"), "base")

    def command(self, extra: str, die_in: str = "", die_after: bool = False, **changes: Any) -> list[str]:
        """The driver's command for an environment with the requirement ``extra``."""
        spec, text = unit.locked({**unit.SPEC, "requirements": [extra] if extra else []}, self.url)
        digest = model.digest(spec)
        request = {
            "layout": [self.layout.root, self.layout.name],
            "spec": spec,
            "spec_digest": digest,
            "release_base": f"2.9.1-cu128-{digest[:8]}",
            "index_url": f"{self.url}/cu128",
            "package_index_url": f"{self.url}/packages",
            "lock": text,
            "interpreter": unit.system_python(),
            "sm": ["sm_120"],
            "time_limit": 60,
            "lock_timeout": 60,
            "disk_required_mib": 1,
            "launcher": str(self.directory / "gpu-env"),
            **changes,
        }
        asked = {"request": request, "uv": str(self.directory / "uv"), "die_in": die_in, "die_after": die_after}
        return [sys.executable, str(ROOT / "tests/faults/release_driver.py"), json.dumps(asked)]

    def run(self, extra: str, **more: Any) -> dict[str, Any]:
        """Run the driver to its end; its answer, or {} where it was killed."""
        done = subprocess.run(self.command(extra, **more), capture_output=True, text=True, check=False, timeout=300)
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout) if done.stdout else {}

    def check(self) -> None:
        """Nothing that is current, stamped or both may be incomplete."""
        state = store.read_state(self.layout)
        assert state.current is not None
        assert state.current in state.stamped
        for release_id, stamp in state.stamped.items():
            assert stamp["proof"]["verdict"] == "passed"
            assert store.damage(self.layout, release_id, stamp) is None


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gpufleet-index-") as directory:
        unit.tiny_torch_index(Path(directory) / "cu128")
        packages = unit.tiny_package_index(Path(directory) / "packages")
        for number in range(400):
            unit.write_wheel(packages / "many", "many", f"{number}.0", {f"many_{n}.py": "x = 1\n" for n in range(200)})
        unit.write_index(packages)
        with unit.serve(Path(directory)) as url:
            yield url


@pytest.fixture
def fleet(index: str) -> Iterator[Fleet]:
    uv = unit.uv_program()
    if os.geteuid() != 0 or uv is None or unit.system_python() is None:
        pytest.skip("needs root, uv and a Python of the system's")
    directory = Path(tempfile.mkdtemp(prefix="gpufleet-faults-", dir="/var/tmp"))
    directory.chmod(0o755)
    shutil.copy(uv, directory / "uv")
    try:
        yield Fleet(directory, index)
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def serving(fleet: Fleet) -> Iterator[list[str]]:
    """Start the environment's Python over and over as its users do; yields the failures."""
    failures: list[str] = []
    count = [0]
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            command = [str(fleet.home / "bin" / "python"), "-c", "import torch, torchvision; print(torch.__version__)"]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, user="nobody", cwd="/", timeout=60
            )
            count[0] += 1
            if done.stdout != "2.9.1+cu128\n":
                failures.append(f"{done.returncode}: {done.stderr}")
            stop.wait(0.05)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        yield failures
    finally:
        stop.set()
        thread.join()
    assert count[0] > 0


@pytest.mark.parametrize("die_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_death_in_any_step_changes_nothing_for_the_users(fleet: Fleet, step: str, die_after: bool) -> None:
    served = fleet.run("")["release"]
    with serving(fleet) as failures:
        assert fleet.run("plainpkg", die_in=step, die_after=die_after) == {}
        fleet.check()
        if STEPS.index(step) < STEPS.index("switch"):
            assert store.read_state(fleet.layout).current == served
        result = fleet.run("plainpkg")
    assert failures == []
    fleet.check()
    state = store.read_state(fleet.layout)
    assert state.current == result["release"] != served
    assert state.previous == served
    assert None not in state.releases.values()


def test_sigkill_at_random_moments(fleet: Fleet, seeds: int) -> None:
    """Of the module or of uv alone, with 200 small files in the link phase."""
    fleet.run("")
    begin = time.monotonic()
    fleet.run("many==0")
    duration = time.monotonic() - begin
    killed = 0
    with serving(fleet) as failures:
        for seed in range(seeds):
            chance = random.Random(seed)  # noqa: S311  # a seed makes a failure come again
            with subprocess.Popen(fleet.command(f"many=={1 + seed}"), stdout=subprocess.PIPE, text=True) as process:
                time.sleep(chance.uniform(0.1, duration))
                victims = [process.pid]
                if chance.random() < 0.5:
                    victims = [int(pid) for pid in _children(process.pid)] or victims
                for pid in victims:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
                process.communicate(timeout=120)
            fleet.check()
            if seed % 5 == 4:
                assert "error" not in fleet.run(f"many=={1 + seed}"), f"seed {seed}"
                fleet.check()
    assert failures == []
    assert killed > seeds // 2
    fleet.run("plainpkg")
    assert None not in store.read_state(fleet.layout).releases.values()


def _children(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


@contextlib.contextmanager
def small_disk(path: Path, options: str) -> Iterator[None]:
    path.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "tmpfs", str(path)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize(
    ("scarce", "plenty"),
    [("size=2m", "size=200m"), ("size=200m,nr_inodes=160", "size=200m,nr_inodes=100000")],
    ids=["space", "inodes"],
)
def test_a_disk_that_fills_up_during_the_build(fleet: Fleet, scarce: str, plenty: str) -> None:
    root = fleet.directory / "envs"
    with small_disk(root, plenty):
        served = fleet.run("")["release"]
        used = os.statvfs(root)
        room = {
            "size=2m": f"remount,size={(used.f_blocks - used.f_bfree) * used.f_frsize // 1024 + 400}k",
        }.get(scarce, f"remount,nr_inodes={len(list(root.rglob('*'))) + 60}")
        subprocess.run(["mount", "-o", room, str(root)], check=True)
        with serving(fleet) as failures:
            # The estimate would refuse at once; what matters here is the disk that fills up afterwards.
            answer = (
                fleet.run("many==0", disk_required_mib=0)
                if scarce == "inodes"
                else fleet.run("many==0", disk_required_mib=1)
            )
        assert failures == []
        assert "error" in answer, answer
        assert "space" in answer["error"] or "inodes free" in answer["error"] or "MiB free" in answer["error"], answer[
            "error"
        ]
        fleet.check()
        assert store.read_state(fleet.layout).releases.keys() == {served}
        subprocess.run(["mount", "-o", f"remount,{plenty}", str(root)], check=True)
        assert fleet.run("many==0")["previous"] == served


def test_an_index_that_stalls_is_given_up_at_the_time_limit(fleet: Fleet) -> None:
    fleet.run("")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        answer = fleet.run("plainpkg", index_url=f"http://127.0.0.1:{silent.getsockname()[1]}/cu128", time_limit=3)
    assert "longer than the time limit of 3 s" in answer["error"]
    assert time.monotonic() - begin < 20
    fleet.check()


def test_two_controllers_at_once_build_once(fleet: Fleet) -> None:
    first = subprocess.Popen(fleet.command("plainpkg"), stdout=subprocess.PIPE, text=True)
    second = subprocess.Popen(fleet.command("plainpkg"), stdout=subprocess.PIPE, text=True)
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in (first, second)]
    assert sorted(answer["changed"] for answer in answers) == [False, True]
    assert answers[0]["release"] == answers[1]["release"]
    fleet.check()


def test_a_release_that_loses_its_interpreter_is_built_again(fleet: Fleet) -> None:
    """As after an upgrade of the system's Python: the manifest still matches, since the link's text is the same."""
    python = fleet.directory / "python3"
    python.symlink_to(str(unit.system_python()))
    served = fleet.run("", interpreter=str(python))["release"]
    python.unlink()
    answer = fleet.run("")
    assert answer["changed"]
    assert "interpreter" in answer["what"]
    assert answer["release"] == served + ".2"
    fleet.check()
