"""The module's own part: its options, what it refuses, and what it says when a step fails."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import model, store, tool, worker
from ansible_collections.gpufleet.workstation.plugins.modules import venv_release

PRESENT = {
    "name": "base",
    "root": "/opt/gpufleet/envs",
    "spec": {"name": "base", "torch": "2.9.1+cu128", "arch": "x86_64"},
    "spec_digest": "0" * 64,
    "release_base": "2.9.1-cu128-00000000",
    "index_url": "https://bob:s3cret@mirror/cu128",
    "interpreter": "/usr/bin/python3",
}


class FakeOperation:
    """An operation that answers or raises what the test wants, and remembers what it was made with."""

    answer: Any = None
    made: list[tuple[Any, Any, bool]] = []  # noqa: RUF012  # one list for the test that reads it

    def __init__(self, request: model.Request, host: Any, check_mode: bool) -> None:
        self.made.append((request, host, check_mode))
        self.what = "build 2.9.1-cu128-00000000: no release of this specification is there"
        self.steps = [{"step": "install", "seconds": 1.0}]
        self.before = store.State({}, "2.9.0-cu128-11111111", None)

    def present(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    previous = absent = present


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(parameters: dict[str, Any], answer: Any = None, uid: int = 0) -> dict[str, Any]:
        FakeOperation.answer = answer
        FakeOperation.made = []
        monkeypatch.setattr(venv_release, "Operation", FakeOperation)
        monkeypatch.setattr(venv_release, "check_root", lambda root: root)
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        with patch_module_args(parameters), pytest.raises(SystemExit):
            venv_release.main()
        return json.loads(capsys.readouterr().out)

    return call


def test_every_option_is_documented_as_it_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    declared: dict[str, Any] = {}

    def catch(spec: dict[str, Any], **_more: Any) -> None:
        declared.update(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr(venv_release, "AnsibleModule", catch)
    with pytest.raises(KeyboardInterrupt):
        venv_release.main()
    documented = yaml.safe_load(venv_release.DOCUMENTATION)["options"]
    assert set(documented) == set(declared)
    for name, option in declared.items():
        for key in ("type", "default", "choices", "elements"):
            assert documented[name].get(key) == option.get(key), (name, key)
        assert bool(documented[name].get("required")) == bool(option.get("required")), name


def test_without_root_it_asks_for_become(run: Any) -> None:
    result = run(PRESENT, uid=1000)
    assert result["failed"]
    assert "become: true" in result["msg"]
    assert result["msg"].endswith("Nothing was changed.")
    assert FakeOperation.made == []


@pytest.mark.parametrize("missing", ["spec", "spec_digest", "release_base", "index_url", "interpreter"])
def test_present_needs_what_the_plan_says(run: Any, missing: str) -> None:
    result = run({key: value for key, value in PRESENT.items() if key != missing})
    assert result["failed"]
    assert missing in result["msg"]


def test_a_bad_name_is_refused_by_name(run: Any) -> None:
    result = run({"name": "../etc", "state": "absent"})
    assert result["failed"]
    assert "'../etc' is no name for an environment" in result["msg"]
    assert result["step"] == "name"


def test_the_options_reach_the_operation(run: Any) -> None:
    answer = {"changed": False, "warnings": ["look"], "release": "x"}
    result = run({**PRESENT, "sm": ["sm_120"], "keep": 3, "_ansible_check_mode": True}, answer)
    assert (result["changed"], result["release"]) == (False, "x")
    request, _host, check_mode = FakeOperation.made[0]
    assert check_mode
    assert request.layout.home == "/opt/gpufleet/envs/base"
    assert (request.sm, request.keep, request.owner, request.group) == (("sm_120",), 3, "root", "root")
    assert request.time_limit == 3600


def test_a_release_can_be_named_to_go_back_to(run: Any) -> None:
    run({"name": "base", "state": "previous", "release": "2.9.0-cu128-1"}, {"changed": True, "warnings": []})
    assert FakeOperation.made[0][0].release == "2.9.0-cu128-1"


def test_a_proxy_reaches_what_downloads_and_is_not_shown(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE")
    for name in names:
        monkeypatch.setenv(name, "of the host")
    proxy = {"http": "http://me:geheim@proxy:3128", "no_proxy": "intern", "ca_file": "/etc/ssl/ours.pem"}
    result = run({**PRESENT, "proxy": proxy}, {"changed": False, "warnings": [], "what": "http://me:geheim@proxy:3128"})
    assert [os.environ[name] for name in names] == [proxy["http"], "of the host", "intern", "/etc/ssl/ours.pem"]
    assert "geheim" not in json.dumps(result)


def test_a_failed_step_says_what_still_serves_and_keeps_the_evidence(run: Any) -> None:
    error = model.ReleaseError(
        "prove the release", "no code for sm_120", "Choose another build.", proof={"verdict": "failed"}
    )
    result = run(PRESENT, error)
    assert result["msg"] == (
        "base: prove the release: no code for sm_120. Choose another build. 2.9.0-cu128-11111111 serves as before."
    )
    assert result["proof"] == {"verdict": "failed"}
    assert (result["step"], result["remedy"]) == ("prove the release", "Choose another build.")
    assert result["steps"] == [{"step": "install", "seconds": 1.0}]


def test_a_password_in_the_index_url_is_masked_everywhere(run: Any) -> None:
    result = run(PRESENT, model.ReleaseError("install", "no answer from https://bob:s3cret@mirror", "Look."))
    assert "s3cret" not in json.dumps(result)


class TestUv:
    def layout(self, tmp_path: Path) -> model.Layout:
        return model.Layout(str(tmp_path), "base")

    def test_it_is_asked_for_where_it_is_neither_here_nor_handed_over(self, tmp_path: Path) -> None:
        assert worker.real_host(self.layout(tmp_path)).uv() is None

    def test_the_one_that_is_here_is_taken(self, tmp_path: Path) -> None:
        present = Path(tool.installed(self.layout(tmp_path).tools))
        present.parent.mkdir(parents=True)
        present.write_text("")
        present.chmod(0o755)
        assert worker.real_host(self.layout(tmp_path)).uv() == str(present)

    def test_the_wheel_that_is_handed_over_is_unpacked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        archive = tmp_path / "uv.whl"
        with zipfile.ZipFile(archive, "w") as wheel:
            wheel.writestr(f"uv-{tool.UV_VERSION}.data/scripts/uv", "#!/bin/sh\n")
        pinned = tool.Wheel(archive.name, hashlib.sha256(archive.read_bytes()).hexdigest(), "any")
        monkeypatch.setattr(tool, "WHEELS", {"x86_64": pinned, "aarch64": pinned})
        assert worker.real_host(self.layout(tmp_path), str(archive)).uv() == tool.installed(self.layout(tmp_path).tools)

    def test_another_architecture_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker.platform, "machine", lambda: "riscv64")
        with pytest.raises(model.ReleaseError, match="no uv for riscv64"):
            worker.real_host(self.layout(tmp_path), "/tmp/uv.whl").uv()
