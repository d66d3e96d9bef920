"""Environments, described by reading only."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import environments
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import stamp
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import contents, manifest

ROOT = "/opt/gpufleet/envs"
RELEASE = "2.9.1-cu128-1a2b3c4d"
SITE = f"{ROOT}/base/releases/{RELEASE}/lib/python3.11/site-packages"
INTACT = {"status": "ok", "missing": 0, "changed": 0, "added": 0, "examples": []}


@pytest.fixture
def proof(monkeypatch):
    """The stamp of a proof; whoever runs the tests is root to it."""
    monkeypatch.setattr(stamp, "OWNER", os.getuid())
    return {
        **dict.fromkeys(("reason", "remedy"), ""),
        **dict.fromkeys(("driver", "flavor", "userspace", "variables"), None),
        "schema": 1,
        "environment": "base",
        "verdict": "passed",
        "level": "static",
        "asked": "static",
        "release": RELEASE,
        "release_digest": "0" * 64,
        "boot_id": "1f3f0bd4-5f1f-4c9b-8a52-0ff25cb5d1ad",
        "sm": ["sm_120"],
        "wish": "0" * 64,
        "burn_seconds": 0,
        "gpus": [],
        "proven_at": "2026-11-22T19:00:00Z",
        "torch": "2.9.1+cu128",
        "checks": {"passed": 9, "failed": [], "not_run": []},
    }


def _observe(tree, wanted=(), unknown=None):
    return environments.observe(tree.host(), ROOT, list(wanted), [] if unknown is None else unknown)


def test_an_intact_environment(debian):
    unknown = []
    (found,) = _observe(debian.environment(), unknown=unknown)
    stamp, digest = found.pop("stamp"), found.pop("stamp_digest")
    assert digest == hashlib.sha256(debian.host().read_bytes(f"{ROOT}/base/stamps/{RELEASE}.json")).hexdigest()
    owner, group = found.pop("owner"), found.pop("group")
    assert stamp["id"] == RELEASE
    assert isinstance(owner, str)
    assert isinstance(group, str)
    assert found == {
        "name": "base",
        "path": f"{ROOT}/base",
        "current": RELEASE,
        "previous": None,
        "releases": [{"id": RELEASE, "stamped": True}],
        "leftovers": [],
        "python": "3.11.2",
        "interpreter_ok": True,
        "torch": {
            "version": "2.9.1+cu128",
            "distribution_version": "2.9.1+cu128",
            "cuda": "12.8",
            "arch_flags": ["sm_70", "sm_120"],
        },
        "companions": {"torchvision": "0.24.1+cu128", "torchaudio": "2.9.1"},
        "integrity": INTACT,
        "verdict": None,
    }
    assert unknown == []


def test_the_stamp_of_the_last_proof_is_shown(debian, proof):
    debian.environment().file(f"{stamp.FOLDER}/base.json", json.dumps(proof))
    unknown = []
    (found,) = _observe(debian, unknown=unknown)
    assert (found["verdict"], unknown) == (proof, [])


def test_a_stamp_of_a_proof_that_is_not_to_be_trusted_is_none_and_is_said_so(debian, proof):
    debian.environment().file(f"{stamp.FOLDER}/base.json", json.dumps(proof))
    debian.path(f"{stamp.FOLDER}/base.json").chmod(0o666)
    unknown = []
    (found,) = _observe(debian, unknown=unknown)
    assert found["verdict"] is None
    assert found["torch"]["version"] == "2.9.1+cu128"
    assert [(row["what"], "nobody else can write" in row["why"]) for row in unknown] == [
        ("environments[base].verdict", True)
    ]


def test_owner_and_group_are_those_of_the_stamp(debian):
    (found,) = _observe(debian.environment(owner="alice", group="vision"))
    assert (found["owner"], found["group"]) == ("alice", "vision")


def test_an_environment_that_cannot_be_described_is_named_and_the_others_are(debian):
    unknown = []
    debian.environment("a").environment("b")
    stamps = debian.path(f"{ROOT}/a/stamps")
    os.rename(stamps, debian.path(f"{ROOT}/a/moved"))
    stamps.symlink_to("stamps")
    assert [found["name"] for found in _observe(debian, unknown=unknown)] == ["b"]
    assert [entry["what"] for entry in unknown] == ["environments[a]"]


def test_only_the_wanted_environments_and_no_hidden_folders(debian):
    debian.environment("base").environment("team-a").folder(f"{ROOT}/.cache/releases").folder(f"{ROOT}/stray")
    assert [found["name"] for found in _observe(debian)] == ["base", "team-a"]
    assert [found["name"] for found in _observe(debian, ["team-a", "absent"])] == ["team-a"]


def test_a_host_without_the_root_has_no_environments(debian):
    assert _observe(debian) == []


def test_a_changed_size_a_missing_and_an_added_file_are_damage(debian):
    debian.environment()
    debian.path(f"{SITE}/torch/version.py").write_text("__version__ = '2.9.1+cu128'\n")
    debian.path(f"{SITE}/torchaudio-2.9.1.dist-info/METADATA").unlink()
    debian.file(f"{SITE}/sitecustomize.py", "import os\n")
    integrity = _observe(debian)[0]["integrity"]
    assert (integrity["status"], integrity["missing"], integrity["changed"], integrity["added"]) == ("damaged", 1, 1, 1)
    assert set(integrity["examples"]) == {
        "lib/python3.11/site-packages/torchaudio-2.9.1.dist-info/METADATA",
        "lib/python3.11/site-packages/torch/version.py",
        "lib/python3.11/site-packages/sitecustomize.py",
    }


def test_a_link_that_points_elsewhere_is_damage(debian):
    debian.environment()
    link = debian.path(f"{ROOT}/base/releases/{RELEASE}/bin/python")
    link.unlink()
    link.symlink_to("/usr/bin/python3.12")
    assert _observe(debian)[0]["integrity"]["changed"] == 1


def test_an_added_pyc_is_damage(debian):
    debian.environment().file(f"{SITE}/torch/__pycache__/evil.cpython-311.pyc", b"x")
    assert _observe(debian)[0]["integrity"]["added"] == 1


def test_many_damages_are_counted_and_five_are_named(debian):
    debian.environment()
    for number in range(9):
        debian.file(f"{SITE}/extra{number}.py")
    integrity = _observe(debian)[0]["integrity"]
    assert integrity["added"] == 9
    assert len(integrity["examples"]) == 5


def test_a_manifest_that_is_not_the_stamped_one_is_damage(debian):
    path = f"{ROOT}/base/stamps/{RELEASE}.manifest"
    debian.environment().file(path, "12 lib/forged.py\n")
    integrity = _observe(debian)[0]["integrity"]
    assert (integrity["status"], integrity["examples"]) == ("damaged", [path])


@pytest.mark.parametrize("missing", ["json", "manifest"])
def test_without_stamp_or_manifest_a_release_is_unstamped(debian, missing):
    debian.environment().path(f"{ROOT}/base/stamps/{RELEASE}.{missing}").unlink()
    assert _observe(debian)[0]["integrity"]["status"] == "unstamped"


@pytest.mark.parametrize("text", ["{", "[]", "null", "\0", ""])
def test_a_stamp_that_is_no_json_object_is_unknown(debian, text):
    unknown = []
    debian.environment().file(f"{ROOT}/base/stamps/{RELEASE}.json", text)
    found = _observe(debian, unknown=unknown)[0]
    assert found["stamp"] is None
    assert found["integrity"]["status"] == "unstamped"
    assert [entry["what"] for entry in unknown] == ["environments[base].stamp"]


@pytest.mark.parametrize(("now", "ok"), [("python3.11", True), ("python3.13", False), ("python3", True)])
def test_another_version_under_the_interpreters_name_is_seen(debian, now, ok):
    debian.environment()
    debian.path(f"/usr/bin/{now}").touch(0o755)
    link = debian.path(f"{ROOT}/base/releases/{RELEASE}/bin/python")
    link.unlink()
    link.symlink_to("/usr/bin/python-default")
    debian.link("/usr/bin/python-default", now)
    assert _observe(debian)[0]["interpreter_ok"] is ok


def test_a_vanished_interpreter_is_seen(debian):
    debian.environment().path("/usr/bin/python3.11").unlink()
    assert _observe(debian)[0]["interpreter_ok"] is False


@pytest.mark.parametrize("target", ["/etc", "releases", "../other/releases/x", "releases/a/b", "."])
def test_a_current_that_leads_out_of_the_releases_names_none(debian, target):
    debian.folder(f"{ROOT}/base/releases/{RELEASE}").link(f"{ROOT}/base/current", target)
    found = _observe(debian)[0]
    assert found["current"] is None
    assert found["torch"] is None


def test_a_current_that_dangles_is_told_without_its_content(debian):
    debian.folder(f"{ROOT}/base/releases").link(f"{ROOT}/base/current", "releases/gone")
    found = _observe(debian)[0]
    assert found["current"] == "gone"
    assert found["interpreter_ok"] is False
    assert found["integrity"]["status"] == "unstamped"


def test_a_release_that_vanished_after_its_stamp_is_damaged(debian):
    unknown = []
    debian.environment()
    os.rename(debian.path(f"{ROOT}/base/releases/{RELEASE}"), debian.path(f"{ROOT}/base/releases/moved"))
    found = _observe(debian, unknown=unknown)[0]
    assert found["integrity"]["status"] == "damaged"
    assert found["integrity"]["missing"] == 8


def test_what_an_interrupted_removal_left_is_no_release(debian):
    debian.environment().folder(f"{ROOT}/base/releases/.2.8.0-cu128-ffffffff").folder(f"{ROOT}/base/stamps/.x")
    (found,) = _observe(debian)
    assert found["leftovers"] == ["2.8.0-cu128-ffffffff"]
    assert found["releases"] == [{"id": RELEASE, "stamped": True}]


def test_an_unfinished_release_is_listed_as_unstamped(debian):
    debian.environment().folder(f"{ROOT}/base/releases/2.9.1-cu128-ffffffff")
    assert _observe(debian)[0]["releases"] == [
        {"id": RELEASE, "stamped": True},
        {"id": "2.9.1-cu128-ffffffff", "stamped": False},
    ]


def test_an_environment_without_torch(debian):
    debian.environment()
    import shutil

    for name in ("torch", "torch-2.9.1+cu128.dist-info"):
        shutil.rmtree(debian.path(f"{SITE}/{name}"))
    assert _observe(debian)[0]["torch"] is None


def test_metadata_and_version_file_are_told_apart(debian):
    debian.environment()
    os.rename(debian.path(f"{SITE}/torch-2.9.1+cu128.dist-info"), debian.path(f"{SITE}/torch-2.9.1.dist-info"))
    torch = _observe(debian)[0]["torch"]
    assert (torch["version"], torch["distribution_version"]) == ("2.9.1+cu128", "2.9.1")


@pytest.mark.parametrize(
    ("text", "version", "cuda"),
    [
        ("__version__ = '2.9.1+cpu'\ncuda: Optional[str] = None\n", "2.9.1+cpu", None),
        ('from typing import Optional\n__version__ = "2.15.0+cu132"\ncuda = "13.2"\n', "2.15.0+cu132", "13.2"),
        ("__version__ = evil()\n", None, None),
        ("", None, None),
    ],
)
def test_versions_are_read_as_text(debian, text, version, cuda):
    debian.environment().file(f"{SITE}/torch/version.py", text)
    torch = _observe(debian)[0]["torch"]
    assert (torch["version"], torch["cuda"]) == (version, cuda)


def test_nothing_of_an_environment_is_executed(debian, tmp_path):
    trap = tmp_path / "executed"
    debian.environment()
    evil = f"import pathlib; pathlib.Path({str(trap)!r}).touch()\n"
    debian.file(f"{SITE}/torch/version.py", evil).file(f"{SITE}/evil.pth", evil).file(f"{SITE}/sitecustomize.py", evil)
    debian.file("/usr/bin/python3.11", f"#!/bin/sh\ntouch {trap}\n", 0o755)
    _observe(debian)
    assert not trap.exists()


def test_integrity_of_30000_files_takes_well_under_a_second(debian):
    base = debian.path(f"{ROOT}/big/releases/r")
    lines = []
    for folder in range(300):
        (base / f"lib/d{folder}").mkdir(parents=True)
        for number in range(100):
            (base / f"lib/d{folder}/f{number}.py").touch()
            lines.append(f"0 lib/d{folder}/f{number}.py\n")
    text = "".join(sorted(lines, key=lambda line: line[2:-1]))
    debian.link(f"{ROOT}/big/current", "releases/r").file(f"{ROOT}/big/stamps/r.manifest", text)
    import hashlib

    digest = hashlib.sha256(text.encode()).hexdigest()
    debian.file(f"{ROOT}/big/stamps/r.json", json.dumps({"manifest_sha256": digest}))
    started = time.process_time()
    assert _observe(debian)[0]["integrity"] == INTACT
    assert time.process_time() - started < 1


def _with_hashes(tree):
    """An environment whose torch has a RECORD, stamped with the list of hashes."""
    tree.environment()
    folder = tree.path(f"{ROOT}/base/releases/{RELEASE}")
    data = tree.path(f"{SITE}/torch/version.py").read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    record = f"torch/version.py,sha256={digest},{len(data)}\ntorch-2.9.1+cu128.dist-info/RECORD,,\n"
    tree.file(f"{SITE}/torch-2.9.1+cu128.dist-info/RECORD", record)
    for name in ("torchvision-0.24.1", "torchaudio-2.9.1"):
        tree.file(f"{SITE}/{name}.dist-info/RECORD", f"{name}.dist-info/METADATA,,\n")
    found = manifest.scan(str(folder))
    texts = {
        "manifest": manifest.encode(manifest.render(found)),
        "hashes": contents.render(str(folder), found).encode(),
    }
    for kind, text in texts.items():
        tree.file(f"{ROOT}/base/stamps/{RELEASE}.{kind}", text)
    stamp = {
        "schema": 1,
        "id": RELEASE,
        **{f"{kind}_sha256": hashlib.sha256(text).hexdigest() for kind, text in texts.items()},
    }
    return tree.file(f"{ROOT}/base/stamps/{RELEASE}.json", json.dumps(stamp))


@pytest.mark.parametrize(
    "file",
    [
        f"{SITE}/torch/version.py",
        f"{SITE}/torch/__pycache__/version.cpython-311.pyc",
        f"{SITE}/torch-2.9.1+cu128.dist-info/RECORD",
        f"{ROOT}/base/releases/{RELEASE}/pyvenv.cfg",
    ],
)
def test_other_contents_of_the_same_size_are_damage_where_hashes_are_asked_for(debian, file):
    host = _with_hashes(debian).host()
    (found,) = environments.observe(host, ROOT, [], [], hashes=True)
    assert found["integrity"] == INTACT
    data = debian.path(file).read_bytes()
    debian.path(file).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert environments.observe(host, ROOT, [], [])[0]["integrity"] == INTACT
    integrity = environments.observe(host, ROOT, [], [], hashes=True)[0]["integrity"]
    assert integrity["status"] == "damaged"
    assert file.partition(f"{RELEASE}/")[2] in integrity["examples"]


def test_what_was_found_damaged_once_stays_so_and_is_not_offered(debian):
    unknown = []
    debian.environment(damaged="1 files hold something else, for example lib/libtorch.so")
    (found,) = _observe(debian, unknown=unknown)
    assert found["integrity"]["status"] == "damaged"
    assert "lib/libtorch.so" in found["integrity"]["examples"][0]
    assert found["releases"] == [{"id": RELEASE, "stamped": False}]
    assert unknown == []


def test_a_release_without_hashes_cannot_be_said_to_be_intact_by_them(debian):
    unknown = []
    found = environments.observe(debian.environment().host(), ROOT, [], unknown, hashes=True)
    assert found[0]["integrity"] is None
    assert "built before hashes were kept" in unknown[0]["why"]


def test_a_list_of_hashes_that_is_not_the_stamped_one_is_damage(debian):
    path = f"{ROOT}/base/stamps/{RELEASE}.hashes"
    host = _with_hashes(debian).file(path, "").host()
    integrity = environments.observe(host, ROOT, [], [], hashes=True)[0]["integrity"]
    assert (integrity["status"], integrity["examples"]) == ("damaged", [path])
