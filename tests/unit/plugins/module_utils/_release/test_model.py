from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, model

SPEC = {
    "name": "base",
    "python": "3.11",
    "torch": "2.9.1+cu128",
    "companions": {"torchvision": "0.24.1"},
    "requirements": ["numpy>=1.26,<3", "transformers[torch]~=4.50 ; python_version >= '3.10'"],
    "arch": "x86_64",
    "schema": 1,
}


def request_for(spec: dict[str, Any], **changes: Any) -> model.Request:
    text = lock.Lock(lock.inputs(spec), (lock.Pinned("torch", "2.9.1+cu128", ("0" * 64,), True),)).render()
    spec = {**spec, "lock": lock.digest(text)}
    digest = model.digest(spec)
    request = model.Request(
        layout=model.Layout("/opt/gpufleet/envs", "base"),
        spec=spec,
        spec_digest=digest,
        release_base=f"2.9.1-cu128-{digest[:8]}",
        index_url="https://download.pytorch.org/whl/cu128",
        lock=text,
        interpreter="/bin/sh",
        sm=("sm_120",),
    )
    return dataclasses.replace(request, **changes)


def test_the_digest_is_that_of_the_canonical_json() -> None:
    assert model.digest({"b": 1, "a": "x y"}) == hashlib.sha256(b'{"a":"x y","b":1}').hexdigest()


def test_a_lock_that_the_spec_does_not_name_is_refused() -> None:
    request = request_for(SPEC)
    with pytest.raises(model.BadInput, match="sha256"):
        model.check_lock(dataclasses.replace(request, lock=request.lock.replace("0" * 64, "1" * 64)))


def test_a_lock_of_another_specification_is_refused() -> None:
    text = request_for({**SPEC, "requirements": []}).lock
    spec = {**SPEC, "lock": lock.digest(text)}
    digest = model.digest(spec)
    request = dataclasses.replace(request_for(SPEC), spec=spec, lock=text, spec_digest=digest)
    with pytest.raises(model.BadInput, match="another specification"):
        model.check_lock(dataclasses.replace(request, release_base=f"2.9.1-cu128-{digest[:8]}"))


def test_a_plan_entry_passes() -> None:
    model.check_present(request_for(SPEC))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "-x", "Base", "a b", "a;id", "a\n", "ä", "x" * 64, ".hidden"]
)
def test_a_name_that_could_leave_its_directory_is_refused(name: str) -> None:
    with pytest.raises(model.BadInput, match="name"):
        model.check_name(name)


@pytest.mark.parametrize("name", ["base", "team-a", "torch2.9_x", "0"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert model.check_name(name) == name


@pytest.mark.parametrize("root", ["envs", "/", "//", "/opt/../etc", "/opt/a\nb", ""])
def test_a_root_that_is_no_directory_below_slash_is_refused(root: str) -> None:
    with pytest.raises(model.BadInput, match="root"):
        model.check_root(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own directories")
class TestRoot:
    def test_a_root_that_is_not_there_yet_is_fine(self, tmp_path: Path) -> None:
        assert model.check_root(str(tmp_path / "a" / "b")) == str(tmp_path / "a" / "b")

    def test_a_link_is_resolved(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        assert model.check_root(str(tmp_path / "link" / "envs")) == str(tmp_path / "real" / "envs")

    def test_a_root_that_everybody_may_write_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "envs").mkdir()
        (tmp_path / "envs").chmod(0o1777)
        with pytest.raises(model.BadInput, match="writable by everybody"):
            model.check_root(str(tmp_path / "envs"))

    def test_a_sticky_directory_above_is_fine_and_an_open_one_is_not(self, tmp_path: Path) -> None:
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared").chmod(0o1777)
        assert model.check_root(str(tmp_path / "shared" / "envs"))
        (tmp_path / "shared").chmod(0o777)
        with pytest.raises(model.BadInput, match="writable by everybody"):
            model.check_root(str(tmp_path / "shared" / "envs"))

    def test_a_directory_of_somebody_else_above_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "theirs").mkdir()
        os.chown(tmp_path / "theirs", 65534, 65534)
        with pytest.raises(model.BadInput, match="belongs to uid 65534"):
            model.check_root(str(tmp_path / "theirs" / "envs"))

    def test_a_file_in_the_way_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "envs").write_text("")
        with pytest.raises(model.BadInput, match="no directory"):
            model.check_root(str(tmp_path / "envs"))

    def test_a_file_system_without_execution_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Noexec:
            f_flag = os.ST_NOEXEC

        monkeypatch.setattr(os, "statvfs", lambda _path: Noexec)
        with pytest.raises(model.BadInput, match="noexec"):
            model.check_root(str(tmp_path / "envs"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spec_digest": "0" * 64}, "spec_digest"),
        ({"release_base": "2.9.1-cu128-00000000"}, "release_base"),
        ({"release_base": "../../etc"}, "release_base"),
        ({"index_url": ""}, "index_url"),
        ({"index_url": "https://a b/c"}, "index_url"),
        ({"package_index_url": "--index-url=x"}, "package_index_url"),
        ({"interpreter": "/nonexistent/python"}, "interpreter"),
        ({"interpreter": "python3"}, "interpreter"),
        ({"sm": ("sm_120; id",)}, "sm"),
        ({"keep": 1}, "keep"),
        ({"time_limit": 0}, "time_limit"),
        ({"layout": model.Layout("/opt/gpufleet/envs", "other")}, "spec"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(model.BadInput) as caught:
        model.check_present(request_for(SPEC, **changes))
    assert caught.value.step == said


@pytest.mark.parametrize(
    "requirement",
    [
        "--index-url=http://evil",
        "-r /etc/passwd",
        "./local",
        "/abs/path",
        "pkg @ http://evil/x.whl",
        "pkg==1 # comment",
        "a\nb",
        "git+https://x/y",
        "",
    ],
)
def test_a_requirement_that_is_more_than_a_project_is_refused(requirement: str) -> None:
    with pytest.raises(model.BadInput, match="requirement"):
        model.check_present(request_for({**SPEC, "requirements": [requirement]}))


@pytest.mark.parametrize("version", ["", "2.9.1 --pre", None, "latest", "2.9.1\n"])
def test_a_version_that_is_none_is_refused(version: Any) -> None:
    with pytest.raises(model.BadInput, match="torch"):
        model.check_present(request_for({**SPEC, "torch": version}))


def test_an_error_names_the_step_the_cause_and_the_remedy() -> None:
    error = model.ReleaseError("install", "no room.", "Free space.")
    assert str(error) == "install: no room. Free space."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://bob:s3cret@host/x failed", "at https://host/x failed"),
        ("at https://token@host/x failed", "at https://host/x failed"),
        ("at https://host/x?a=b@c", "at https://host/x?a=b@c"),
    ],
)
def test_credentials_are_hidden(text: str, shown: str) -> None:
    assert model.hide_credentials(text) == shown


@pytest.mark.parametrize("names", [[], ["releases"], ["bin", "stamps", "notes.txt"], [".current.7"], ["runtime.env"]])
def test_an_environment_of_ours_is_not_foreign_however_unfinished(names: list[str]) -> None:
    assert not model.is_foreign(names)


@pytest.mark.parametrize("part", ["a", "a:", "://", "a://", "https://a", "https://u:p@"])
def test_credentials_of_a_megabyte_are_hidden_at_once(part: str) -> None:
    started = time.perf_counter()
    model.hide_credentials(part * (1_000_000 // len(part)))
    assert time.perf_counter() - started < 5
