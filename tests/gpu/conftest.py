"""Runs on a machine with an NVIDIA GPU and a Python that has a CUDA build of torch (GPUFLEET_TORCH_PYTHON, else python3).

Needs pytest and this checkout alone: no Ansible, no network. Nothing here changes the GPU's settings.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

COLLECTIONS = Path(__file__).resolve().parents[2] / "collections"
for folder in (COLLECTIONS, Path(__file__).resolve().parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
pytest.register_assert_rewrite("proving")

from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import driver_kernel, runner  # noqa: E402

DESCRIBE = """
import json, torch
major, minor = torch.cuda.get_device_capability(0)
print(json.dumps(dict(version=torch.__version__, cuda=torch.version.cuda, sm="sm_%d%d" % (major, minor),
                      count=torch.cuda.device_count(), flags=torch.cuda.get_arch_list())))
"""

HOLD = """
import sys, torch
kept = [torch.ones(1, device="cuda")]
leave = int(sys.argv[1]) << 20
if leave:
    size = 1 << 30
    while size >= 1 << 20:
        if torch.cuda.mem_get_info()[0] > leave + size:
            kept.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        else:
            size //= 2
print("ready", flush=True)
sys.stdin.read()
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


@pytest.fixture
def hold(torch_python):
    """Another process with a CUDA context that leaves so many MiB free (0: takes next to nothing)."""
    processes = []

    def start(leave_mib=0):
        command = [torch_python, "-I", "-c", HOLD, str(leave_mib)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline().strip() == "ready"
        return process

    yield start
    for process in processes:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


@pytest.fixture
def tampered(torch_python):
    """A virtual environment that sees the machine's torch, changed by a module that its site-packages loads at start."""
    root = Path(tempfile.mkdtemp(prefix="proof-gpu-test-"))
    root.chmod(0o755)
    command = [torch_python, "-I", "-m", "venv", "--without-pip", "--system-site-packages", str(root)]
    subprocess.run(command, check=True)
    site = next(root.glob("lib/python3*/site-packages"))
    # Where the Python under test is a virtual environment itself, the new one sees the system's packages, not that one's.
    where = [torch_python, "-I", "-c", "import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))"]
    packages = subprocess.run(where, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    (site / "torch_of_the_machine.pth").write_text(packages + "\n", encoding="utf-8")

    # Not sitecustomize: Ubuntu has one of its own, which comes first.
    (site / "torch_tampered.pth").write_text("import tampered_torch\n", encoding="ascii")

    def change(code):
        (site / "tampered_torch.py").write_text("import torch\n" + code, encoding="ascii")
        return str(root / "bin" / "python")

    yield change
    shutil.rmtree(root)


@pytest.fixture
def change_driver_kernel(monkeypatch):
    """Change the program that runs a kernel without torch, by replacing a part of its source."""
    genuine = runner.source_of

    def change(old, new):
        assert old in genuine(driver_kernel)

        def source_of(module):
            return genuine(module).replace(old, new) if module is driver_kernel else genuine(module)

        monkeypatch.setattr(runner, "source_of", source_of)

    return change
