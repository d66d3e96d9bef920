"""Environments whose torch is a few lines of Python, so that everything but CUDA runs as it does on a host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TORCH = '''
import types


class Matrix:
    """Enough of a tensor for a product of small integers."""

    def __init__(self, rows):
        self.rows = rows

    def reshape(self, rows, columns):
        flat = [value for row in self.rows for value in row]
        return Matrix([flat[start * columns : (start + 1) * columns] for start in range(rows)])

    def __mod__(self, number):
        return Matrix([[value % number for value in row] for row in self.rows])

    def __matmul__(self, other):
        columns = list(zip(*other.rows))
        return Matrix([[float(sum(x * y for x, y in zip(row, column))) for column in columns] for row in self.rows])

    def tolist(self):
        return self.rows


float32 = "float32"


def arange(count, dtype=None):
    return Matrix([[float(value) for value in range(count)]])


__version__ = "2.9.1+cu128"
version = types.SimpleNamespace(cuda="12.8")
_C = types.SimpleNamespace(_cuda_getArchFlags=lambda: "sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")
'''


class Environment:
    """A virtual environment with a pretended torch."""

    def __init__(self, root: Path) -> None:
        # root's own Python may lie where the unprivileged account cannot go.
        base = "/usr/bin/python3" if os.geteuid() == 0 and os.path.exists("/usr/bin/python3") else sys.executable
        base = os.path.realpath(base)
        ask = "import sys; print('%d.%d' % sys.version_info[:2])"
        version = subprocess.run([base, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
        self.root = root
        self.python = str(root / "bin" / "python")
        self.site = root / "lib" / f"python{version}" / "site-packages"
        self.site.mkdir(parents=True)
        (root / "bin").mkdir()
        os.symlink(base, self.python)
        (root / "pyvenv.cfg").write_text(f"home = {os.path.dirname(base)}\n", encoding="ascii")
        self.install("torch", TORCH)

    def install(self, name: str, source: str) -> None:
        (self.site / name).mkdir(exist_ok=True)
        (self.site / name / "__init__.py").write_text(source, encoding="ascii")

    def torch(self, more: str) -> None:
        """Append to the pretended torch."""
        self.install("torch", TORCH + more)


@pytest.fixture
def environment():
    # pytest's own temporary directories can be entered by their owner alone.
    root = Path(tempfile.mkdtemp(prefix="proof-test-"))
    root.chmod(0o755)
    yield Environment(root)
    shutil.rmtree(root)
