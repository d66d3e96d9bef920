"""What users take away: every file says the same as the lock, and none lets one index replace what the other serves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, takeaway

ENVIRONMENT: dict[str, Any] = {
    "name": "base",
    "root": "/opt/gpufleet/envs",
    "spec": {"python": "3.12", "torch": "2.9.1+cu128"},
    "index_url": "https://bob:s3cret@mirror.example/cu128",
    "package_index_url": "",
    "variables": {"TOKENIZERS_PARALLELISM": "false"},
}
LOCK = lock.Lock(
    {"name": "base"},
    (
        lock.Pinned("torch", "2.9.1+cu128", ("0" * 64,)),
        lock.Pinned("nvidia-cublas-cu12", "12.8.4.1", ("1" * 64,)),
        lock.Pinned("numpy", "2.4.6", ("2" * 64, "3" * 64)),
    ),
)
FILES = takeaway.files(ENVIRONMENT, LOCK)


def pins(name: str) -> list[str]:
    text = "\n".join(line for line in FILES[name].splitlines() if not line.startswith("--"))
    return [f"{item.name}=={item.version}" for item in lock.pinned(text)]


def test_each_index_has_a_file_of_its_own_with_all_hashes() -> None:
    assert pins(takeaway.TORCH_FILE) == ["nvidia-cublas-cu12==12.8.4.1", "torch==2.9.1+cu128"]
    assert pins(takeaway.REST_FILE) == ["numpy==2.4.6"]
    assert "--index-url https://mirror.example/cu128\n" in FILES[takeaway.TORCH_FILE]


@pytest.mark.parametrize("name", FILES)
def test_no_file_holds_credentials_or_a_second_index(name: str) -> None:
    assert "s3cret" not in FILES[name]
    assert "extra-index" not in FILES[name]


def test_constraints_pin_everything() -> None:
    expected = ["numpy==2.4.6", "nvidia-cublas-cu12==12.8.4.1", "torch==2.9.1+cu128"]
    assert [line for line in FILES["constraints.txt"].splitlines() if not line.startswith("#")] == expected


def test_the_image_has_the_environments_python_and_variables() -> None:
    lines = FILES["Dockerfile"].splitlines()
    assert "FROM python:3.12-slim" in lines
    assert "ENV TOKENIZERS_PARALLELISM=false" in lines


def test_the_kernel_resolves_the_release_when_it_starts() -> None:
    kernel = json.loads(FILES["kernel.json"])
    assert kernel["argv"][0] == "/opt/gpufleet/envs/base/bin/python"
    assert kernel["env"] == {"TOKENIZERS_PARALLELISM": "false"}
