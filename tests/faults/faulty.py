"""What the fault tests work with: an index that misbehaves on request, a host, and a tally of what was seen.

The host is this machine, with a root of its own, real uv, real processes and tiny wheels in torch's place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "collections"))
sys.path.insert(0, str(ROOT / "tests/unit/plugins/module_utils/_release"))

import tiny_index as tiny  # noqa: E402
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import model, store  # noqa: E402

FILES = 150  # in a package that takes uv a while to link
WATCHER = "daemon"  # an account that is neither root nor the one that builds
PATIENCE = 180


class Index:
    """A torch index and a package index behind one server, which damages what it sends when told to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kind = ""
        self.where = ""
        self.hits = 0
        self.healed = threading.Event()
        self._number = 0
        tiny.tiny_torch_index(directory / "cu128")
        tiny.tiny_package_index(directory / "packages")

    def new_project(self, files: dict[str, str] | None = None) -> str:
        """Add a package that nobody has yet; returns its name."""
        self._number += 1
        name = f"many{self._number}"
        content = files or {f"{name}_{number}.py": "x = 1\n" for number in range(FILES)}
        tiny.write_wheel(self.directory / "packages" / name, name, "1.0", content)
        links = self.directory / "links"
        links.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (links / name).symlink_to(self.directory / "packages" / name)
        tiny.write_index(links)
        (links / name).unlink()
        return name

    @contextlib.contextmanager
    def broken(self, kind: str, where: str) -> Iterator[None]:
        """Until the end of the block, files whose path holds ``where`` and that are wheels are served with the fault ``kind``."""
        self.kind, self.where, self.hits = kind, where, 0
        self.healed.clear()
        try:
            yield
        finally:
            self.kind = ""
            self.healed.set()
        assert self.hits, f"nobody asked for {where}: the fault never happened"

    def other_wheel(self, path: Path) -> bytes:
        """A sound wheel of the same name that holds something else."""
        project, version = path.name.split("-")[:2]
        with tempfile.TemporaryDirectory() as directory:
            return tiny.write_wheel(Path(directory), project, version, {"another.py": "y = 2\n"}).read_bytes()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the index, with its fault."""

    def __init__(self, *arguments: Any, index: Index) -> None:
        self.index = index
        super().__init__(*arguments, directory=str(index.directory))

    def log_message(self, *_args: object) -> None:
        """Keep the tests' output readable."""

    def do_GET(self) -> None:
        """As usual, unless this is what is to be damaged."""
        kind = self.index.kind
        if not kind or self.index.where not in self.path or not self.path.endswith(".whl"):
            super().do_GET()
            return
        self.index.hits += 1
        path = Path(self.translate_path(self.path))
        data = path.read_bytes()
        half = data[: len(data) // 2]
        if kind == "unavailable":
            self.send_error(503)
            return
        body = {
            "corrupt": half + bytes([data[len(half)] ^ 0xFF]) + data[len(half) + 1 :],
            "other": self.index.other_wheel(path) if kind == "other" else b"",
            "short": half,
        }.get(kind, half)
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data) if kind in ("cut", "stall") else len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may have given up
            self.wfile.write(body)
            self.wfile.flush()
            if kind == "stall":
                self.index.healed.wait(PATIENCE)
        self.close_connection = True


@contextlib.contextmanager
def serve(directory: Path) -> Iterator[tuple[Index, str]]:
    """An index on the loopback interface; yields it with its URL."""
    index = Index(directory)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, index=index))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@dataclasses.dataclass
class Tally:
    """What one test did and saw. The table is made of these numbers."""

    runs: int = 0
    hit: int = 0
    late: int = 0
    observations: int = 0
    seconds: float = 0.0
    failures: int = 0
    expected_failures: int = 0
    false_greens: int = 0
    recoveries: int = 0
    converged: int = 0


@dataclasses.dataclass
class Watch:
    """What the watching process saw; known at the end of watching."""

    served: list[str] = dataclasses.field(default_factory=list)
    last_failure: float = 0.0


@dataclasses.dataclass
class Host:
    """One host's root with an index behind it, driven through processes of its own."""

    directory: Path
    index: Index
    url: str
    tally: Tally = dataclasses.field(default_factory=Tally)

    @property
    def root(self) -> Path:
        return self.directory / "envs"

    @property
    def home(self) -> Path:
        return self.root / "base"

    @property
    def layout(self) -> model.Layout:
        return model.Layout(str(self.root), "base")

    @property
    def state(self) -> store.State:
        return store.read_state(self.layout)

    def command(self, project: str, **more: Any) -> list[str]:
        """The driver's command for an environment that also holds ``project``."""
        faults = {"die_in": "", "die_after": False, "squeeze": None, "clock": 0.0, "state": "present"}
        changes = {key: more.pop(key) for key in list(more) if key not in faults}
        spec, text = tiny.locked({**tiny.SPEC, "requirements": [project] if project else []}, self.url)
        digest = model.digest(spec)
        request = {
            "layout": [str(self.root), "base"],
            "spec": spec,
            "spec_digest": digest,
            "release_base": f"2.9.1-cu128-{digest[:8]}",
            "index_url": f"{self.url}/cu128",
            "package_index_url": f"{self.url}/packages",
            "lock": text,
            "interpreter": tiny.system_python(),
            "sm": ["sm_120"],
            "time_limit": 60,
            "lock_timeout": 60,
            "disk_required_mib": 1,
            "launcher": str(self.directory / "gpu-env"),
            **changes,
        }
        asked = {"request": request, "uv": str(self.directory / "uv"), **faults, **more}
        return [sys.executable, str(ROOT / "tests/faults/release_driver.py"), json.dumps(asked)]

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start a driver, in a session of its own; network timeouts are short, so that tests are."""
        environment = {**os.environ, "UV_HTTP_TIMEOUT": "2", "UV_HTTP_RETRIES": "1"}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """A driver's answer, or {} where it was killed."""
        out, err = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in err, err
        return json.loads(out) if out else {}

    def run(self, project: str, broken: str = "", **more: Any) -> dict[str, Any]:
        """Run the driver to its end, with the index broken where that is asked for ("kind path")."""
        command = self.command(project, **more)  # resolved against the sound index, as the controller did long ago
        with self.index.broken(*broken.split()) if broken else contextlib.nullcontext():
            return self.finish(self.start(command))

    def serve(self) -> str:
        """See to it that something serves; which release that is."""
        if self.state.current is None:
            answer = self.run("")
            assert "error" not in answer, answer["error"]
        self.check()
        return str(self.state.current)

    def check(self) -> None:
        """Nothing that is current, stamped or both may be incomplete or unproven."""
        state = self.state
        wrong = [] if state.current in state.stamped else [f"{state.current} serves without a stamp"]
        for release_id, stamp in state.stamped.items():
            damage = store.damage(self.layout, release_id, stamp, hashes=True)
            if damage and release_id not in self.state.stamped:
                continue  # a build that goes on removed it meanwhile
            if stamp["proof"]["verdict"] != "passed" or (damage and not stamp.get("damaged")):
                wrong.append(f"{release_id} is stamped: {stamp['proof']['verdict']}, {damage}")
        self.tally.false_greens += len(wrong)
        assert wrong == []

    def refuses(self, project: str, served: str, **fault: Any) -> str:
        """Run into a fault: the run has to say that it failed, and nothing of it may be used. Returns what it says."""
        self.tally.runs += 1
        answer = self.run(project, **fault)
        if "error" not in answer or self.state.current != served:
            self.tally.false_greens += 1
        assert "error" in answer, answer
        assert self.state.current == served
        self.tally.hit += 1
        self.check()
        return str(answer["error"])

    def converges(self, project: str, **more: Any) -> dict[str, Any]:
        """The next run, without the fault and without anybody's help, has to get there."""
        self.tally.recoveries += 1
        answer = self.run(project, **more)
        assert "error" not in answer, answer.get("error")
        state = self.state
        assert state.current == answer["release"]
        wanted = [project] if project else []
        assert state.stamped[state.current]["spec"]["requirements"] == wanted
        self.check()
        assert None not in state.releases.values()
        left = [
            name for place in (self.layout.home, self.layout.stamps) for name in os.listdir(place) if name[0] == "."
        ]
        assert left == []
        self.tally.converged += 1
        return answer

    @contextlib.contextmanager
    def watched(self, tolerate: bool = False) -> Iterator[Watch]:
        """Use the environment all the time. A failure fails the test, unless the fault itself takes away what serves (``tolerate``)."""
        watch = Watch()
        python = tiny.system_python()
        command = [str(python), "-I", str(self.directory / "watcher.py"), str(self.home)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            user=WATCHER,
            group=WATCHER,
            extra_groups=[],
            cwd="/",
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        try:
            yield watch
        finally:
            out, err = process.communicate(timeout=PATIENCE)
            seen = json.loads(out) if out else {"observations": 0, "failures": 1, "examples": [err]}
            watch.served = seen.get("served", [])
            watch.last_failure = seen.get("last_failure", 0.0)
            self.tally.observations += seen["observations"]
            self.tally.seconds += seen.get("seconds", 0.0)
            self.tally.false_greens += seen.get("false_greens", 0)
            if tolerate:
                self.tally.expected_failures += seen["failures"]
            else:
                self.tally.failures += seen["failures"]
        assert seen["observations"] > 0
        assert seen["green_examples"] == []
        assert tolerate or seen["examples"] == []


def stop_and_kill(pid: int) -> bool:
    """Kill a process that certainly still lives: it is stopped first, which one that has ended cannot be."""
    try:
        os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state in "Tt":
                os.kill(pid, signal.SIGKILL)
                return True
            if state in "ZX":
                return False
            time.sleep(0.001)
    except OSError:
        return False
    return False


def children(pid: int, program: str) -> list[int]:
    """Direct children of a process that run ``program``."""
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{child}/exe") == program:
                    found.append(int(child))
    return found


def new_host(index: Index, url: str) -> Host:
    """A host without environments."""
    directory = Path(tempfile.mkdtemp(prefix="gpufleet-faults-", dir="/var/tmp"))
    directory.chmod(0o755)
    shutil.copy(str(tiny.uv_program()), directory / "uv")
    shutil.copy(Path(__file__).parent / "watcher.py", directory)  # the account that watches may not see the checkout
    return Host(directory, index, url)
