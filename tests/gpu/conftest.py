"""Runs on a machine with an NVIDIA GPU and a Python that has a CUDA build of torch (GPUFLEET_TORCH_PYTHON, else python3).

Needs pytest and this checkout alone: no Ansible, no network. Nothing here changes the GPU's settings.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COLLECTIONS = Path(__file__).resolve().parents[2] / "collections"
if str(COLLECTIONS) not in sys.path:
    sys.path.insert(0, str(COLLECTIONS))

DESCRIBE = """
import json, torch
major, minor = torch.cuda.get_device_capability(0)
print(json.dumps(dict(version=torch.__version__, cuda=torch.version.cuda, sm="sm_%d%d" % (major, minor),
                      count=torch.cuda.device_count(), flags=torch.cuda.get_arch_list())))
"""


@pytest.fixture(scope="session")
def torch_python() -> str:
    """The Python under test."""
    python = os.environ.get("GPUFLEET_TORCH_PYTHON") or shutil.which("python3")
    assert python, "name a Python with torch in GPUFLEET_TORCH_PYTHON"
    return os.path.join(os.path.realpath(os.path.dirname(python)), os.path.basename(python))


@pytest.fixture(scope="session")
def described(torch_python: str) -> dict:
    """What that Python's torch says when asked directly, without the code under test."""
    done = subprocess.run([torch_python, "-I", "-c", DESCRIBE], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def nvidia_smi() -> list:
    """The GPUs as nvidia-smi lists them: PCI address as sysfs spells it, UUID, name."""
    query = ["nvidia-smi", "--query-gpu=pci.bus_id,uuid,name", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [[field.strip() for field in line.split(",")] for line in lines]
    return [{"pci_address": row[0].lower()[-12:], "uuid": row[1], "name": row[2]} for row in rows]
