"""Real environments from tiny wheels: a local index, uv, the account nobody as builder, and a proof that can be told what to say."""

from __future__ import annotations

import dataclasses
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import model, release, store
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.processes import Account

sys.path.insert(0, str(Path(__file__).parent))
import tiny_index
from tiny_index import SPEC, system_python, uv_program


@dataclasses.dataclass
class Bench:
    """A root for environments, an index, and what the next proof says."""

    directory: Path
    url: str
    proofs: list[dict[str, Any]]
    verdict: str = "passed"
    answer: dict[str, Any] = dataclasses.field(default_factory=dict)  # what else the next proof says

    @property
    def root(self) -> Path:
        return self.directory / "envs"

    @property
    def home(self) -> Path:
        return self.root / "base"

    def request(self, **changes: Any) -> model.Request:
        """A request for the tiny torch; keyword arguments change the spec where they are part of it. ``index``: URL of another server."""
        spec = {**SPEC, **{key: changes.pop(key) for key in list(changes) if key in SPEC}}
        index = changes.pop("index", self.url)
        spec, text = tiny_index.locked(spec, index)
        digest = model.digest(spec)
        values: dict[str, Any] = {
            "layout": model.Layout(str(self.root), spec["name"]),
            "spec": spec,
            "spec_digest": digest,
            "release_base": f"{spec['torch'].replace('+', '-')}-{digest[:8]}",
            "index_url": f"{index}/cu128",
            "package_index_url": f"{self.url}/packages",
            "lock": text,
            "interpreter": system_python(),
            "sm": ("sm_120",),
            "time_limit": 60,
            "lock_timeout": 0,
            "disk_required_mib": 1,
            "launcher": str(self.directory / "bin" / "gpu-env"),
        }
        return model.Request(**{**values, **changes})

    def operation(self, check_mode: bool = False, **changes: Any) -> release.Operation:
        """An operation on this root, with everything real but the proof."""
        nobody = pwd.getpwnam("nobody")
        host = release.Host(
            account=lambda: Account("nobody", nobody.pw_uid, nobody.pw_gid),
            uv=lambda: str(self.directory / "uv"),
            prove=self._prove,
            now=lambda: f"2026-11-22T19:00:{len(self.proofs):02d}Z",
        )
        return release.Operation(self.request(**changes), host, check_mode)

    def _prove(self, python: str, request: dict[str, Any], user: str, time_limit: float) -> dict[str, Any]:
        self.proofs.append({"python": python, "user": user, "time_limit": time_limit, **request})
        check = {
            "id": "torch.arch",
            "status": self.verdict,
            "evidence": "sm_120 checked",
            "remedy": "Choose another build.",
        }
        facts = {"version": request["expect"]["torch"], "distribution_version": None, "cuda": "12.8", "arch_flags": []}
        return {
            "verdict": self.verdict,
            "checks": [check],
            "torch": facts,
            "companions": request["expect"]["companions"],
            **self.answer,
        }


@pytest.fixture(scope="session")
def index() -> Iterator[str]:
    """The URL of a server with the torch index /cu128 and the package index /packages."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-index-") as directory:
        tiny_index.tiny_torch_index(Path(directory) / "cu128")
        tiny_index.tiny_package_index(Path(directory) / "packages")
        with tiny_index.serve(Path(directory)) as url:
            yield url


@pytest.fixture(scope="session")
def uv() -> Iterator[Path]:
    """uv where every account may execute it."""
    program = uv_program()
    if os.geteuid() != 0 or program is None or system_python() is None:
        pytest.skip("needs root, uv and a Python of the system's")
    with tempfile.TemporaryDirectory(prefix="gpufleet-uv-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(shutil.copy(program, directory))


@pytest.fixture
def bench(index: str, uv: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A fresh root that the account nobody can reach, which pytest's own temporary directories are not.

    Nothing waits for the disk but test_store: on a busy machine that takes longer than everything else together.
    """
    directory = Path(tempfile.mkdtemp(prefix="gpufleet-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    (directory / "uv").symlink_to(uv)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(
        store, "start_sync", lambda _path: subprocess.Popen(["true"], stderr=subprocess.PIPE, text=True)
    )
    try:
        yield Bench(directory, index, [])
    finally:
        shutil.rmtree(directory)
