# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An index of tiny wheels on a local port, which counts what is fetched and misbehaves on request."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.store import Store
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.wheels import Wanted


def wheel(file: str, filling: int = 0) -> bytes:
    """The bytes of a wheel of this name; `filling` more bytes that do not compress."""
    name, version = file.split("-")[:2]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}-{version}.dist-info/METADATA"), f"Name: {name}\nVersion: {version}\n")
        archive.writestr(zipfile.ZipInfo("filling"), b"x" * filling)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Upstream:
    """What the server shows and how it behaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.announced: dict[str, str | None] = {}
        self.requests: list[str] = []
        self.truncate: dict[str, int] = {}
        """How often each file is cut in the middle."""
        self.errors: dict[str, list[int]] = {}
        """Statuses that a path answers with first."""
        self.lengths = True
        self.credentials = ""
        self.seen: list[str | None] = []
        self.url = ""

    def offer(self, file: str, filling: int = 0) -> Wanted:
        """Show a wheel in the package index; returns what a lock would want of it."""
        self.files[file] = wheel(file, filling)
        self.announced[file] = sha256(self.files[file])
        project, version = file.split("-")[:2]
        return Wanted("packages/simple", project, version, "3.11", "x86_64", (sha256(self.files[file]),))

    def fetched(self) -> list[str]:
        """The wheels that were asked for, in order."""
        return [path.rpartition("/")[2] for path in self.requests if path.endswith(".whl")]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A running index."""
    state = Upstream()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            state.seen.append(self.headers["Authorization"])
            folder, _, name = self.path.strip("/").rpartition("/")
            expected = f"Basic {base64.b64encode(state.credentials.encode()).decode()}" if state.credentials else None
            if expected and self.headers["Authorization"] != expected:
                self.answer(401, b"")
            elif state.errors.get(self.path):
                self.answer(state.errors[self.path].pop(0), b"")
            elif folder == "files" and name in state.files:
                self.answer(200, state.files[name], state.truncate.get(name, 0))
                state.truncate[name] = max(state.truncate.get(name, 0) - 1, 0)
            elif self.path.startswith(("/simple/", "/whl/")):
                links = [
                    f'<a href="/files/{file}{f"#sha256={digest}" if digest else ""}">{file}</a>'
                    for file, digest in state.announced.items()
                    if file.split("-")[0] == name
                ]
                self.answer(200 if links else 404, "".join(links).encode())
            else:
                self.answer(404, b"")

        def answer(self, status: int, data: bytes, cut: int = 0) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            if state.lengths:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)

        def log_message(self, *_arguments: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty mirror."""
    (tmp_path / "mirror").mkdir()
    return Store(str(tmp_path / "mirror"))
