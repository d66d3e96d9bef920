"""The stamp of a proof on a real GPU: what it says, what it covers and what ends it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import expected
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner, stamp

PROVE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner, stamp
stamp.FOLDER, stamp.OWNER = sys.argv[2], os.geteuid()
environment = {"name": "base", "python": sys.argv[3], "sm": [sys.argv[4]]}
print("begun", flush=True)
stamp.prove(runner.prove, [environment], {"level": "quick", "sm": [], "gpus": None}, True, 0, print)
"""


@pytest.fixture
def base(monkeypatch, torch_python):
    """A release of an environment `base` that is the machine's torch, and a folder of its own for stamps."""
    root = Path(tempfile.mkdtemp(prefix="proof-gpu-test-"))
    root.chmod(0o755)
    home = root / "envs/base"
    binaries = home / "releases/r1/bin"
    binaries.mkdir(parents=True)
    (home / "stamps").mkdir()
    (home / "stamps/r1.json").write_text("{}", encoding="ascii")
    # A symlink to the interpreter would lose the virtual environment that it belongs to.
    (binaries / "python").write_text(f'#!/bin/sh\nexec {torch_python} "$@"\n', encoding="utf-8")
    (binaries / "python").chmod(0o755)
    monkeypatch.setattr(stamp, "FOLDER", str(root / "proof"))
    monkeypatch.setattr(stamp, "OWNER", os.geteuid())
    monkeypatch.setattr(expected, "PATH", str(root / "gpus.json"))
    yield home
    shutil.rmtree(root)


@pytest.fixture
def proven(base, described):
    """Prove it, and keep the verdict; `max_age` lets a stamp count."""

    def prove(max_age=0, **expect):
        environment = {"name": "base", "python": str(base / "releases/r1/bin/python"), "sm": [described["sm"]]}
        environment["expect"] = expect
        options = {"level": "quick", "sm": [], "gpus": None}
        told = []
        result = stamp.prove(runner.prove, [environment], options, True, max_age, told.append)
        assert not told
        return result["environments"][0]

    return prove


def test_a_stamp_names_the_gpus_the_driver_and_the_boot_and_covers_until_the_release_changes(
    base, proven, nvidia_smi, described
):
    first = proven()
    assert (first["verdict"], first["stamped"]) == ("passed", False), first["reason"]
    document = stamp.read(Host(), "base")
    assert {gpu["uuid"] for gpu in document["gpus"]} == {gpu["uuid"] for gpu in nvidia_smi}
    assert {gpu["verdict"] for gpu in document["gpus"]} == {"passed"}
    assert document["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    assert document["driver"] == subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    assert (document["level"], document["torch"]) == ("quick", described["version"])

    started = time.monotonic()
    again = proven(max_age=1)
    print(f"covered: {time.monotonic() - started:.3f} s, {document}")
    assert (again["verdict"], again["stamped"], again["proven_at"]) == ("passed", True, document["proven_at"])

    assert proven(max_age=1, torch=described["version"])["stamped"] is False
    assert proven(max_age=1, torch=described["version"])["stamped"] is True
    (base / "stamps/r1.json").write_text("{ }", encoding="ascii")
    assert proven(max_age=1, torch=described["version"])["stamped"] is False


def test_a_proof_that_is_killed_leaves_no_stamp(base, proven, described):
    assert proven()["verdict"] == "passed"
    collections = Path(__file__).resolve().parents[2] / "collections"
    python = str(base / "releases/r1/bin/python")
    command = [sys.executable, "-c", PROVE, str(collections), stamp.FOLDER, python, described["sm"]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    time.sleep(1.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert stamp.read(Host(), "base") is None
