"""Builds that go on without who asked for them: real module processes, a real worker, tiny wheels from an index that can wait."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import tiny_index
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import build, jobs, model, tool

yaml = pytest.importorskip("yaml", reason="the module itself is executed here, which takes Ansible")
REPOSITORY = Path(__file__).resolve().parents[5]
MODULE = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.workstation.plugins.modules import venv_release
with patch_module_args(json.load(sys.stdin)):
    venv_release.main()
"""
SECRET = "s3cret-of-the-test"  # noqa: S105


class Index:
    """An index whose wheels wait while the gate is closed."""

    def __init__(self, url: str, gate: threading.Event) -> None:
        self.url = url
        self.gate = gate

    @property
    def torch(self) -> str:
        parts = urlsplit(self.url)
        return f"http://bob:{SECRET}@{parts.netloc}/cu128"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    directory = tmp_path_factory.mktemp("index")
    tiny_index.tiny_torch_index(directory / "cu128")
    tiny_index.tiny_package_index(directory / "packages")
    gate = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(directory))

        def do_GET(self) -> None:
            if self.path.endswith(".whl"):
                gate.wait(60)
            with contextlib.suppress(ConnectionError):
                super().do_GET()

        def log_message(self, *_arguments: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Index(f"http://127.0.0.1:{server.server_address[1]}", gate)
    gate.set()
    server.shutdown()
    server.server_close()


class Runs:
    """The module's own processes on one root."""

    def __init__(self, bench: Any, index: Index) -> None:
        self.index = index
        self.layout = model.Layout(str(bench.root), "base")
        self.log = bench.directory / "log"
        self.request = bench.request(index=index.url)
        self.other = bench.request(index=index.url, companions={})
        self.parameters = {
            "name": "base",
            "root": str(bench.root),
            "spec": self.request.spec,
            "spec_digest": self.request.spec_digest,
            "release_base": self.request.release_base,
            "index_url": index.torch,
            "package_index_url": f"{index.url}/packages",
            "lock": self.request.lock,
            "interpreter": self.request.interpreter,
            "launcher": "",
            "sm": ["sm_120"],
            "disk_required": 1,
            "lock_timeout": 1,
            "follow_seconds": 60,
        }

    def start(self, **changes: Any) -> subprocess.Popen[str]:
        """Begin an execution of the module."""
        process = subprocess.Popen(
            [sys.executable, "-c", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "collections")},
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({**self.parameters, **changes}))
        process.stdin.close()
        process.stdin = None
        return process

    @staticmethod
    def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
        """The answer of an execution, in which no credentials may be."""
        output, errors = process.communicate(timeout=60)
        assert SECRET not in output + errors
        assert output, errors
        answer: dict[str, Any] = json.loads(output)
        return answer

    def run(self, **changes: Any) -> dict[str, Any]:
        return self.finish(self.start(**changes))

    def job(self) -> jobs.Job:
        """The job as soon as uv waits for the index."""
        job = wait(lambda: jobs.find(self.layout))
        wait(lambda: job.at()["step"] == "install")
        return job

    def current(self) -> str:
        return os.path.basename(os.path.realpath(self.layout.link("current")))


def wait(look: Callable[[], Any], seconds: float = 30) -> Any:
    """The first true value that a look gives."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it never came true")


def command_lines() -> str:
    lines = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return b"\n".join(lines).decode("utf-8", "replace")


def of_root(root: str) -> list[int]:
    """The processes that have to do with a root."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            if root.encode() in words:
                found.append(int(pid))
    return found


@pytest.fixture
def runs(bench: Any, served: Index) -> Iterator[Runs]:
    """A root with uv, an index whose gate is closed, and the account that builds (removed again if it is new)."""
    served.gate.set()
    made = Runs(bench, served)
    uv = Path(tool.installed(made.layout.tools))
    uv.parent.mkdir(parents=True)
    shutil.copy(bench.directory / "uv", uv)
    account_is_new = "gpufleet:" not in Path("/etc/passwd").read_text()
    served.gate.clear()
    yield made
    served.gate.set()
    for pid in of_root(made.layout.root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait(lambda: not of_root(made.layout.root))
    if account_is_new:
        build.remove_build_account()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_a_build_goes_on_without_who_follows_and_is_adopted(runs: Runs, end: signal.Signals) -> None:
    first = runs.start()
    job = runs.job()
    first.send_signal(end)
    first.communicate(timeout=10)
    assert job.running
    second = runs.start()
    time.sleep(0.5)
    runs.index.gate.set()
    answer = runs.finish(second)
    assert answer.get("changed"), answer
    assert answer["release"] == runs.current() == runs.request.release_base
    assert f"base: adopted the build that began at {job.status['began']}" in json.dumps(answer["warnings"])
    assert [step["step"] for step in answer["steps"]].count("install") == 1


def test_a_build_that_nobody_follows_is_found_done(runs: Runs) -> None:
    first = runs.start()
    job = runs.job()
    first.kill()
    first.communicate(timeout=10)
    runs.index.gate.set()
    wait(job.ended)
    answer = runs.run()
    assert not answer["changed"]
    assert answer["what"].startswith("keep")
    assert runs.current() == runs.request.release_base
    assert not os.path.exists(os.path.dirname(runs.layout.job))


def test_a_killed_worker_takes_uv_along_leaves_nothing_usable_and_the_next_run_converges(runs: Runs) -> None:
    first = runs.start()
    job = runs.job()
    os.kill(job.status["pid"], signal.SIGKILL)
    answer = runs.finish(first)
    assert answer["failed"]
    assert "without a result" in answer["msg"]
    assert "No release serves" in answer["msg"]
    wait(lambda: not of_root(runs.layout.root), 10)
    assert not os.path.lexists(runs.layout.link("current"))
    assert os.listdir(runs.layout.stamps) == []
    runs.index.gate.set()
    answer = runs.run()
    assert answer.get("changed"), answer
    assert runs.current() == answer["release"]
    assert [runs.current()] == os.listdir(runs.layout.releases)


def test_two_who_follow_get_the_same_result_and_the_job_is_gone_afterwards(runs: Runs) -> None:
    first = runs.start()
    runs.job()
    second = runs.start()
    wait(lambda: len([name for name in os.listdir(runs.layout.job) if name.startswith("follower.")]) == 2)
    runs.index.gate.set()
    one, other = runs.finish(first), runs.finish(second)
    assert one.get("changed"), one
    assert {key: value for key, value in other.items() if key != "warnings"} == {
        key: value for key, value in one.items() if key != "warnings"
    }
    assert not os.path.exists(os.path.dirname(runs.layout.job))


def test_a_slice_ends_with_the_progress_and_the_next_one_goes_on(runs: Runs) -> None:
    answer = runs.run(follow_seconds=0.2)
    assert (answer["running"], answer["changed"]) == (True, False)
    progress = wait(lambda: runs.run(follow_seconds=0.2, follow=answer["follow"]).get("progress"))
    assert set(progress) == {
        *("release", "step", "seconds", "bytes_done", "bytes_total", "bytes_total_from", "rate"),
    }
    assert (progress["release"], progress["bytes_total_from"]) == (runs.request.release_base, "experience")
    runs.index.gate.set()
    ended = runs.run(follow=answer["follow"])
    assert ended["changed"]
    assert "warnings" not in ended


def test_another_specification_waits_for_the_lock_and_then_names_who_has_it(runs: Runs) -> None:
    first = runs.start()
    job = runs.job()
    request = runs.other
    other = {"spec": request.spec, "spec_digest": request.spec_digest, "release_base": request.release_base}
    answer = runs.run(**other, lock=request.lock)
    assert answer["failed"]
    assert f"process {job.status['pid']}, working on base since" in answer["msg"]
    runs.index.gate.set()
    assert runs.finish(first)["changed"]


def test_removal_is_refused_while_it_is_built(runs: Runs) -> None:
    first = runs.start()
    job = runs.job()
    answer = runs.run(state="absent")
    assert answer["failed"]
    assert f"process {job.status['pid']}, which builds {runs.request.release_base}" in answer["msg"]
    runs.index.gate.set()
    assert runs.finish(first)["changed"]


def test_credentials_are_on_no_command_line_and_in_no_file(runs: Runs) -> None:
    first = runs.start(follow_seconds=0.5)
    job = runs.job()
    assert SECRET not in command_lines()
    for path in Path(runs.layout.root).rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    assert os.stat(os.path.dirname(runs.layout.job)).st_mode & 0o777 == 0o700
    assert os.stat(runs.layout.job).st_mode & 0o777 == 0o700
    assert Path(f"/proc/{job.status['pid']}/environ").read_bytes().find(SECRET.encode()) == -1
    follow = runs.finish(first)["follow"]
    runs.index.gate.set()
    assert runs.run(follow=follow)["changed"]
    for path in Path(runs.layout.root).rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_a_failure_is_told_as_the_worker_met_it(runs: Runs) -> None:
    runs.index.gate.set()
    answer = runs.run(index_url=f"http://bob:{SECRET}@127.0.0.1:1/cu128")
    assert answer["failed"]
    assert answer["step"].startswith("install torch 2.9.1+cu128 from http://127.0.0.1:1/cu128")
    assert "No release serves; what was begun is removed." in answer["msg"]
    assert not os.path.exists(runs.layout.job)
    assert os.listdir(runs.layout.releases) == []


def test_a_reused_pid_and_another_boot_are_not_believed(tmp_path: Path) -> None:
    layout = model.Layout(str(tmp_path), "base")
    Path(layout.job).mkdir(parents=True)
    me = {"schema": model.SCHEMA, "job": "1", **jobs.identity()}
    for change, alive in (({}, True), ({"ticks": 1}, False), ({"boot": "another"}, False), ({"pid": 2**22 + 1}, False)):
        (Path(layout.job) / "status.json").write_text(json.dumps({**me, **change}))
        job = jobs.find(layout)
        assert job is not None
        assert job.running is alive, change


def test_a_playbook_builds_through_the_action_plugin_and_shows_how_far_it_is(runs: Runs, tmp_path: Path) -> None:
    task = {"gpufleet.workstation.venv_release": {**runs.parameters, "follow_seconds": 1}, "register": "built"}
    shown = {"ansible.builtin.debug": {"msg": "{{ built.release }} {{ built.changed }}"}}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task, shown]}
    play["vars"] = {"ansible_python_interpreter": sys.executable}
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump([play]))
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"), "HOME": str(tmp_path)}
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", str(playbook)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    runs.job()
    time.sleep(1.5)
    runs.index.gate.set()
    output, _nothing = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert f"localhost: base: building {runs.request.release_base}: install" in output
    assert f"{runs.request.release_base} True" in output
    assert SECRET not in output
    assert runs.current() == runs.request.release_base
