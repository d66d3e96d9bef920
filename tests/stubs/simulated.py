"""The simulated libcuda.so.1 and libnvidia-ml.so.1 of the sandbox, compiled with faults that a test scripts (faults.h).

Nothing of the code under test knows of them: a library finds its table of GPUs and its faults in the folder that it was loaded from,
and the tests lead the search for libraries there.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "molecule/shared/sandbox/native"
VERSION, CUDA = "580.95.05", 13000
LIBRARIES = {"cuda": "libcuda.so.1", "nvml": "libnvidia-ml.so.1"}
RTX_5070 = (
    "{address}|2f04|205e10de|NVIDIA GeForce RTX 5070|GPU-00000000-0000-0000-0000-00000000000{number}|12227|12|0|16|16"
)


def compiler() -> str | None:
    """The system's C compiler."""
    return shutil.which("cc")


def compile_libraries(folder: Path) -> None:
    """Compile both libraries."""
    options = [
        "-std=gnu11",
        "-D_GNU_SOURCE",
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fvisibility=hidden",
    ]
    defines = ["-DSCRIPTED", f'-DVERSION="{VERSION}"', f"-DCUDA_VERSION={CUDA}", f"-I{HERE}"]
    for source, library in LIBRARIES.items():
        command = [compiler() or "cc", *options, *defines, "-o", folder / library, NATIVE / f"{source}.c", "-ldl"]
        subprocess.run(command, check=True)


def address(index: int) -> str:
    """Where on the bus a GPU is."""
    return f"0000:{index + 1:02x}:00.0"


class Driver:
    """A simulated driver: a folder for each library, so that each can see other GPUs than the other."""

    def __init__(self, compiled: Path) -> None:
        # pytest's own temporary folders can be entered by their owner alone; the proof runs as somebody else.
        self.folder = Path(tempfile.mkdtemp(prefix="gpufleet-stubs-"))
        self.folder.chmod(0o755)
        for source, library in LIBRARIES.items():
            (self.folder / source).mkdir()
            shutil.copy(compiled / library, self.folder / source)
        self.gpus(2)

    def gpus(self, number: int, *, of: str | None = None) -> None:
        """So many GPUs, up to 16; ``of`` names the one library that shall see them."""
        rows = [RTX_5070.format(address=address(index), number=index + 1) + "\n" for index in range(number)]
        for source in [of] if of else LIBRARIES:
            (self.folder / source / "gpus").write_text("".join(rows), encoding="ascii")

    def faults(self, *lines: str) -> None:
        """Script the faults of both libraries."""
        for source in LIBRARIES:
            (self.folder / source / "faults").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")

    @property
    def search_path(self) -> str:
        """What leads the loader to the libraries (LD_LIBRARY_PATH)."""
        return ":".join(str(self.folder / source) for source in LIBRARIES)

    def load(self, names: Sequence[str]) -> ctypes.CDLL:
        """Load a library, as Host.load_library does."""
        source = next(source for source, library in LIBRARIES.items() if library == names[0])
        return ctypes.CDLL(str(self.folder / source / names[0]))

    def users(self) -> list[int]:
        """The processes that have one of the libraries mapped."""
        found = []
        for maps in Path("/proc").glob("[0-9]*/maps"):
            try:
                if str(self.folder) in maps.read_text(encoding="utf-8", errors="replace"):
                    found.append(int(maps.parent.name))
            except OSError:  # ended meanwhile
                continue
        return found


@pytest.fixture(scope="session")
def compiled_driver() -> Iterator[Path]:
    """The folder of the compiled libraries."""
    if compiler() is None:
        pytest.skip("the simulated driver needs a C compiler (cc)")
    with tempfile.TemporaryDirectory(prefix="gpufleet-stubs-") as folder:
        compile_libraries(Path(folder))
        yield Path(folder)


@pytest.fixture
def simulated(compiled_driver: Path) -> Iterator[Driver]:
    """A simulated driver with two healthy GPUs."""
    driver = Driver(compiled_driver)
    yield driver
    shutil.rmtree(driver.folder)


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.fixture
def unkillable(simulated: Driver) -> Iterator[Callable[[], None]]:
    """Call it, and the first process that uses the simulated driver is in state D from then on: SIGKILL does not reach it.

    So does a driver that hangs in the kernel. When the test is over, the process thaws and ends.
    """
    group = FREEZER / f"gpufleet-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs the freezer of cgroup v1: {error}")

    def freeze() -> None:
        users = simulated.users()
        while not users:
            time.sleep(0.01)
            users = simulated.users()
        (group / "cgroup.procs").write_text(str(users[0]))
        (group / "freezer.state").write_text("FROZEN")

    watcher = threading.Thread(target=freeze, daemon=True)
    yield watcher.start
    watcher.join()
    frozen = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    (group / "freezer.state").write_text("THAWED")
    for pid in frozen:
        os.waitpid(pid, 0)
    group.rmdir()
