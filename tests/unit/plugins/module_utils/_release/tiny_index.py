"""A package index of tiny wheels, in a directory and behind a local HTTP server, for tests that build real environments."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks

SPEC = {
    "name": "base",
    "python": "3.11",
    "torch": "2.9.1+cu128",
    "companions": {"torchvision": "0.24.1", "torchaudio": "2.9.1"},
    "requirements": [],
    "arch": "x86_64",
    "schema": 1,
}


def locked(spec: dict[str, Any], url: str) -> tuple[dict[str, Any], str]:
    """The specification with its lock, and the lock's text, resolved by uv as on a controller; raises locks.NoLock."""
    text = _lock(json.dumps(spec), url)
    return {**spec, "lock": lock.digest(text)}, text


@functools.cache
def _lock(spec: str, url: str) -> str:
    indexes = locks.Indexes(f"{url}/cu128", f"{url}/packages")
    return locks.resolve(json.loads(spec), indexes, None, lambda: str(uv_program())).render()


def system_python() -> str | None:
    """A Python that every account may execute; a pyenv below /root is none."""
    for minor in (14, 13, 12, 11, 10):
        path = f"/usr/bin/python3.{minor}"
        if os.access(path, os.X_OK):
            return path
    return None


def uv_program() -> str | None:
    """The uv that the development requirements bring."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


TENSOR = """
class Tensor:
    def __init__(self, rows):
        self.rows = rows

    def __mod__(self, number):
        return Tensor([[value % number for value in row] for row in self.rows])

    def __matmul__(self, other):
        columns = list(zip(*other.rows))
        return Tensor([[sum(x * y for x, y in zip(row, column)) for column in columns] for row in self.rows])

    def reshape(self, height, width):
        values = [value for row in self.rows for value in row]
        return Tensor([values[row * width : (row + 1) * width] for row in range(height)])

    def tolist(self):
        return self.rows


def arange(count, dtype=None):
    return Tensor([[float(value) for value in range(count)]])


def tensor(values):
    return Tensor(values)


float32 = "float32"
"""
TORCH = {
    "torch/__init__.py": "from torch import _C, version\nfrom torch.version import __version__\n" + TENSOR,
    "torch/_C.py": "def _cuda_getArchFlags():\n    return 'sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120'\n",
    "torch/py.typed": "",
}
"""Just enough of torch for the static proof: flags, versions and an exact product of small integers, in plain Python."""
COMPANION = {
    "torchvision": "import types\n\nfrom torch import Tensor\n\nops = types.SimpleNamespace(nms=lambda *_boxes: Tensor([0, 2]))\n",
    "torchaudio": "import torch\n",
}


def torch_files(version: str) -> dict[str, str]:
    """What the stand-in for torch holds: a version, a CUDA version and arch flags, as the static proof reads them."""
    cuda = version.partition("+cu")[2]
    text = f"__version__ = {version!r}\ncuda = {cuda[:-1] + '.' + cuda[-1] if cuda else None!r}\ngit_version = 'tiny'\n"
    return {**TORCH, "torch/version.py": text}


def write_wheel(
    directory: Path, project: str, version: str, files: dict[str, str], requires: tuple[str, ...] = ()
) -> Path:
    """Write a valid pure-Python wheel with a RECORD that carries hashes and sizes."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{project.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    contents = {
        **files,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tiny\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for name, text in contents.items():
        data = text.encode()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}\n")
    contents[f"{info}/RECORD"] = "".join(rows) + f"{info}/RECORD,,\n"
    path = directory / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in contents.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # without the time, so that the same wheel has the same hash
    return path


def write_index(directory: Path) -> None:
    """Make the PEP 503 pages for the wheels that lie in the directory's project folders."""
    for project in [path for path in directory.iterdir() if path.is_dir()]:
        links = []
        for wheel in sorted([*project.glob("*.whl"), *project.glob("*.tar.gz")]):
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            links.append(f'<a href="{wheel.name.replace("+", "%2B")}#sha256={digest}">{wheel.name}</a><br>')
        (project / "index.html").write_text("<!DOCTYPE html><html><body>" + "\n".join(links) + "</body></html>")


def tiny_torch_index(directory: Path, versions: tuple[str, ...] = ("2.9.0+cu128", "2.9.1+cu128")) -> Path:
    """A torch index: torch in these versions with its companions and one nvidia library; returns the directory."""
    pairs = {"2.9.0": ("0.24.0", "2.9.0"), "2.9.1": ("0.24.1", "2.9.1")}
    for version in versions:
        plain, _plus, tag = version.partition("+")
        vision, audio = pairs.get(plain, ("0.0.1", plain))
        local = f"+{tag}" if tag else ""
        write_wheel(
            directory / "torch", "torch", version, torch_files(version), ("nvidia-tiny==12.8.1", "nvidia-small==12.8.2")
        )
        for project, number in (("torchvision", vision), ("torchaudio", audio)):
            files = {f"{project}/__init__.py": f"{COMPANION[project]}\n__version__ = '{number}{local}'\n"}
            write_wheel(directory / project, project, number + local, files, (f"torch=={plain}",))
    payload = {"nvidia/__init__.py": "", "nvidia/tiny/__init__.py": "", "nvidia/tiny/lib/libtiny.so": "tiny\n" * 1000}
    write_wheel(directory / "nvidia-tiny", "nvidia-tiny", "12.8.1", payload)
    # As torch's libraries do, two wheels bring the same file.
    shared = {"nvidia/__init__.py": "", "nvidia/small/__init__.py": "", "nvidia/small/data": "small\n"}
    write_wheel(directory / "nvidia-small", "nvidia-small", "12.8.2", shared)
    write_index(directory)
    return directory


def tiny_package_index(directory: Path) -> Path:
    """A package index with a few small projects for requirements; returns the directory."""
    write_wheel(directory / "plainpkg", "plainpkg", "1.0", {"plainpkg.py": "VALUE = 1\n"})
    write_wheel(directory / "plainpkg", "plainpkg", "2.0", {"plainpkg.py": "VALUE = 2\n"})
    write_wheel(directory / "wantsold", "wantsold", "1.0", {"wantsold.py": ""}, ("torch<2",))
    write_wheel(
        directory / "torch", "torch", "1.0", {"torch/__init__.py": "raise ImportError('from the wrong index')\n"}
    )
    write_sdist(directory / "sourceonly", "sourceonly", "1.0")
    write_index(directory)
    return directory


def write_sdist(directory: Path, project: str, version: str) -> None:
    """Write a source distribution whose build would leave a trace."""
    directory.mkdir()
    setup = "open('/var/tmp/gpufleet-built-from-source', 'w')\nfrom setuptools import setup\nsetup()\n"
    with tarfile.open(directory / f"{project}-{version}.tar.gz", "w:gz") as archive:
        for name, text in (
            ("PKG-INFO", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"),
            ("setup.py", setup),
        ):
            member = tarfile.TarInfo(f"{project}-{version}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Keep the tests' output readable."""


@contextlib.contextmanager
def serve(directory: Path) -> Iterator[str]:
    """Serve a directory on the loopback interface; yields the URL."""
    handler = functools.partial(_Quiet, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def serve_both() -> Iterator[tuple[Path, str]]:
    """A folder with a torch index (cu128) and a package index (packages), and the URL at which it is served."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-index-") as directory:
        tiny_torch_index(Path(directory) / "cu128")
        tiny_package_index(Path(directory) / "packages")
        with serve(Path(directory)) as url:
            yield Path(directory), url
