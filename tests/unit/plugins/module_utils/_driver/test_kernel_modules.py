"""Building the driver's modules with DKMS, and proving what is in /lib/modules."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver import kernel_modules
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.commands import NOT_THERE, Done
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import (
    DriverError,
    Package,
    PackageFile,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable

RECORDED = Path(__file__).parent / "recorded"
K, OTHER = "6.12.107+deb13-amd64", "6.12.94+deb13-amd64"
COMPILER = "nvidia/nv-pci.c:237: error: too few arguments to function 'pci_resize_resource'"


def recorded(name: str) -> str:
    """What real programs said: Debian 13's dkms 3.2.2 and 550.163.01."""
    return (RECORDED / name).read_text(encoding="utf-8")


class Dkms:
    """Plays dkms, dpkg-deb and nice; ``fails`` says which kernels fail, and how."""

    def __init__(self, fails: dict[str, tuple[Done, str]] | None = None) -> None:
        self.fails = fails or {}
        self.asked: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.installed = ""

    def __call__(self, argv, time_limit, environment=None, text=""):
        argv = list(argv)
        self.asked.append(argv)
        self.environments.append(dict(environment or {}))
        if argv[0] == "dpkg-deb":
            subprocess.run(["cp", "-a", f"{argv[2]}/.", argv[3]], check=True)
            return Done(0, "")
        argv = argv[argv.index("dkms") :]
        option = dict(zip(argv, argv[1:]))
        tree = Path(option.get("--dkmstree", self.installed))
        folder = tree / option["-m"] / option["-v"]
        done, log = self.fails.get(option["-k"], (Done(0, ""), ""))
        if log:
            (folder / "build").mkdir(parents=True, exist_ok=True)
            (folder / "build/make.log").write_text(log)
        if argv[1] == "build" and done.status == 0:
            (folder / option["-k"] / "x86_64/module").mkdir(parents=True)
            (folder / option["-k"] / "x86_64/module" / f"{option['-m']}.ko.xz").touch()
        return done


def source(folder: Path, name: str, version: str, text: str | None = None) -> None:
    path = folder / f"{name}-{version}"
    path.mkdir(parents=True)
    (path / "dkms.conf").write_text(text or f'PACKAGE_NAME="{name}"\nPACKAGE_VERSION="{version}"\nAUTOINSTALL=yes\n')


@pytest.fixture
def package(tmp_path):
    """A package file that is a folder: the fake dpkg-deb copies it."""

    def make(name: str, dkms_name: str, version: str) -> PackageFile:
        path = tmp_path / f"{name}_{version}.deb"
        source(path / "usr/src", dkms_name, version)
        return PackageFile(Package(name, f"{version}-2"), path, "")

    return make


@pytest.fixture
def trial(tmp_path):
    def run(dkms, files, releases=(K,)):
        return kernel_modules.trial_build(dkms, files, releases, tmp_path / "work", 900)

    return run


# -- the compiler's words ---------------------------------------------------------------------------------------------


def test_the_compilers_own_line_is_found_in_debians_failing_build():
    assert kernel_modules.compiler_lines(recorded("make-550.163.01-6.12.107.txt")) == [COMPILER]


def test_without_a_compilers_line_make_says_why():
    assert kernel_modules.compiler_lines(recorded("make-no-compiler.txt")) == [
        "Failed CC sanity check. Bailing out! ***",
        "Failed CC version check. ***",
    ]


@pytest.mark.parametrize(
    ("log", "lines"),
    [
        ("", []),
        ("make[1]: Entering directory '/x'\n CC [M] nv.o\n", []),
        ("/var/lib/dkms/nvidia/580.95.05/build/nvidia/a.c:1:2: fatal error: x.h: No such file or directory\n",
         ["nvidia/a.c:1: fatal error: x.h: No such file or directory"]),
        ("/usr/src/kernels/5.14.0-611.el9.x86_64/include/linux/mm.h:9:2: error: expected ';'\n",
         ["/usr/src/kernels/5.14.0-611.el9.x86_64/include/linux/mm.h:9: error: expected ';'"]),
        ('ERROR: modpost: GPL-incompatible module nvidia.ko uses GPL-only symbol \'__vma_start_write\'\n',
         ["ERROR: modpost: GPL-incompatible module nvidia.ko uses GPL-only symbol '__vma_start_write'"]),
        ("ld.lld: error: unable to find library\n", ["ld.lld: error: unable to find library"]),
        ("a.c:1:1: warning: unused\nb.c:2:1: error: one\nb.c:2:1: error: one\nb.c:3:1: error: two\nb.c:4:1: error: 3\nb.c:5:1: error: 4\n",
         ["b.c:2: error: one", "b.c:3: error: two", "b.c:4: error: 3"]),
    ],
)  # fmt: skip
def test_first_errors_of_other_logs(log, lines):
    assert kernel_modules.compiler_lines(log) == lines


# -- trial builds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dkms_name"),
    [
        ("nvidia-kernel-open-dkms", "nvidia"),
        ("nvidia-open-kernel-dkms", "nvidia-current-open"),
        ("nvidia-kernel-dkms", "nvidia-current"),
        ("nvidia-kernel-source-580-open", "nvidia"),
        ("kmod-nvidia-open-dkms", "nvidia-open"),
    ],
)
def test_a_trial_builds_what_the_package_brings_under_its_own_name_for_every_kernel(
    trial, package, name, dkms_name, tmp_path
):
    dkms = Dkms()
    assert trial(dkms, [package(name, dkms_name, "580.95.05")], (K, OTHER)) == []
    builds = [argv for argv in dkms.asked if "dkms" in argv]
    assert [argv[-6:] for argv in builds] == [
        ["-m", dkms_name, "-v", "580.95.05", "-k", release] for release in (K, OTHER)
    ]
    assert all("--sourcetree" in argv and "--dkmstree" in argv for argv in builds)


def test_a_trial_touches_neither_the_hosts_tree_nor_its_keys_and_leaves_nothing(trial, package, tmp_path):
    dkms = Dkms()
    (tmp_path / "work/left/behind").mkdir(parents=True)
    trial(dkms, [package("nvidia-kernel-open-dkms", "nvidia", "580.95.05")])
    (build,) = [argv for argv in dkms.asked if "dkms" in argv]
    options = dict(zip(build, build[1:]))
    assert options["--dkmstree"].startswith(str(tmp_path / "work"))
    assert options["--sourcetree"].startswith(str(tmp_path / "work"))
    assert dkms.environments[-1]["sign_file"] == "/nonexistent"
    assert not (tmp_path / "work").exists()


def test_a_trial_that_fails_quotes_the_compiler_and_keeps_the_log(trial, package, tmp_path):
    failing = Done(
        10,
        f"Error! Bad return status for module build on kernel: {K} (x86_64)\nConsult /x/make.log for more information.\n",
    )
    dkms = Dkms({K: (failing, recorded("make-550.163.01-6.12.107.txt"))})
    (failure,) = trial(dkms, [package("nvidia-open-kernel-dkms", "nvidia-current-open", "550.163.01")], (OTHER, K))
    assert failure.kernel == K
    assert failure.compiler == (COMPILER,)
    assert Path(failure.log).read_text() == recorded("make-550.163.01-6.12.107.txt")
    said = kernel_modules.explain([failure])
    for part in (
        K,
        "nvidia-current-open 550.163.01",
        COMPILER,
        failure.log,
        "does not know this kernel",
        "Ways out: boot a kernel",
    ):
        assert part in said
    assert not (tmp_path / "work").exists()


def test_a_build_that_succeeds_drops_the_log_of_the_one_that_failed(trial, package):
    file = package("nvidia-kernel-open-dkms", "nvidia", "580.95.05")
    (failure,) = trial(Dkms({K: (Done(10, ""), "a.c:1:1: error: x\n")}), [file])
    assert Path(failure.log).exists()
    assert trial(Dkms(), [file]) == []
    assert not Path(failure.log).exists()


def test_a_success_that_built_nothing_is_a_failure(trial, package):
    class Liar(Dkms):
        def __call__(self, argv, *more):
            return super().__call__(argv, *more) if argv[0] == "dpkg-deb" else Done(0, "")

    (failure,) = trial(Liar(), [package("nvidia-kernel-open-dkms", "nvidia", "580.95.05")])
    assert "built nothing" in failure.why


def test_a_full_disk_keeps_no_log_and_is_named_all_the_same(trial, package, tmp_path):
    (tmp_path / "build-logs").write_text("")  # no folder can be made there
    (failure,) = trial(Dkms({K: (Done(10, FULL), "x\n")}), [package("nvidia-kernel-open-dkms", "nvidia", "580.95.05")])
    assert (failure.why, failure.log) == ("the disk is full", "")


def test_packages_with_modules_that_come_compiled_have_nothing_to_try(trial, package):
    dkms = Dkms()
    assert trial(dkms, [package("linux-modules-nvidia-580-open-generic", "nvidia", "580.95.05")]) == []
    assert dkms.asked == []


def test_a_trial_is_cleaned_up_also_when_it_is_interrupted(trial, package, tmp_path):
    def interrupted(argv, *more):
        if argv[0] == "dpkg-deb":
            return Dkms()(argv, *more)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trial(interrupted, [package("nvidia-kernel-open-dkms", "nvidia", "580.95.05")])
    assert not (tmp_path / "work").exists()


def test_a_damaged_package_is_named(trial, package):
    with pytest.raises(
        DriverError, match=r"nvidia-kernel-open-dkms_580.95.05.deb cannot be unpacked: not a Debian format archive"
    ):
        trial(
            lambda *_: Done(2, "dpkg-deb: error:\nnot a Debian format archive\n"),
            [package("nvidia-kernel-open-dkms", "n", "580.95.05")],
        )


HEADERS_322 = (
    "Error! Your kernel headers for kernel 6.99 cannot be found at /lib/modules/6.99/build or /lib/modules/6.99/source.\n"
    "Please install the linux-headers-6.99 package or use the --kernelsourcedir option to tell DKMS where it's located.\n"
)
HEADERS_28 = "Error! echo\nYour kernel headers for kernel 6.99 cannot be found at\n/lib/modules/6.99/build or /lib/modules/6.99/source.\n"
FULL = "cp: error writing '/w/nv.c': No space left on device\nError! Bad return status for module build on kernel: 6.99 (x86_64)\n"
EXCLUSIVE = "Error! The /w/dkms.conf\nfor module nvidia/1 includes a BUILD_EXCLUSIVE directive\nwhich does not match.\n"


@pytest.mark.parametrize(
    ("done", "log", "why", "remedy"),
    [
        (Done(21, HEADERS_322), "", "headers are not installed", "linux-headers-6.99 (Enterprise Linux: kernel-devel-6.99)"),
        (Done(1, HEADERS_322), "", "headers are not installed", "boot a kernel that has its headers"),
        (Done(1, HEADERS_28), "", "headers are not installed", "linux-headers-6.99"),
        (Done(10, FULL), "", "the disk is full", "Free 2 GB"),
        (Done(10, ""), "gcc: fatal error: Killed signal terminated program cc1\n", "ran out of memory", "Free memory"),
        (Done(77, EXCLUSIVE), "", "BUILD_EXCLUSIVE", "Ways out"),
        (Done(9, EXCLUSIVE), "", "BUILD_EXCLUSIVE", "Ways out"),
        (Done(10, ""), recorded("make-no-compiler.txt"), "x86_64-linux-gnu-gcc-14 is not installed", "Install x86_64-linux-gnu-gcc-14"),
        (Done(10, ""), "ERROR: modpost: GPL-incompatible module nvidia.ko\n", "does not compile", "Ways out"),
        (Done(NOT_THERE, "nice: 'dkms': No such file or directory"), "", "dkms is not installed", "EPEL"),
        (Done(-15, "", True), "", "ended after 900 s", "allow more time"),
        (Done(4, "Error! Something new.\nConsult /gone\n"), "", "the build failed: Something new.", "Ways out"),
        (Done(4, "new words\n"), "", "the build failed: new words", "Ways out"),
    ],
)  # fmt: skip
def test_every_cause_has_its_own_words_and_remedy(trial, package, done, log, why, remedy):
    (failure,) = trial(
        Dkms({"6.99": (done, log)}), [package("nvidia-kernel-open-dkms", "nvidia", "580.95.05")], ("6.99",)
    )
    assert why in failure.why
    assert remedy in failure.remedy
    assert failure.kernel == "6.99"


def test_each_way_out_is_said_once():
    failures = [kernel_modules.Failure(release, "nvidia 580.95.05", "it does not compile") for release in (K, OTHER)]
    said = kernel_modules.explain(failures)
    assert K in said
    assert OTHER in said
    assert said.count("Ways out") == 1


# -- unpacking an rpm -------------------------------------------------------------------------------------------------


def cpio(*entries: tuple[str, int, bytes]) -> bytes:
    """A newc archive, as rpm2cpio prints it."""
    data = b""
    for name, mode, content in (*entries, ("TRAILER!!!", 0, b"")):
        raw = name.encode() + b"\0"
        fields = [1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0]
        part = b"070701" + b"".join(b"%08x" % value for value in fields) + raw
        data += part + bytes(-len(part) % 4) + content + bytes(-len(content) % 4)
    return data


def unpack_rpm(tmp_path, data: bytes) -> Path:
    def rpm2cpio(argv, *_more):
        Path(argv[-1]).write_bytes(data)
        return Done(0, "")

    kernel_modules.unpack(rpm2cpio, tmp_path / "kmod-nvidia-open-dkms.rpm", tmp_path / "to")
    return tmp_path / "to"


def test_an_rpms_sources_are_unpacked(tmp_path):
    folder = unpack_rpm(
        tmp_path,
        cpio(
            ("./usr/src/nvidia-580.95.05", 0o40755, b""),
            ("./usr/src/nvidia-580.95.05/dkms.conf", 0o100644, b'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="580.95.05"\n'),
            ("./usr/src/nvidia-580.95.05/conftest.sh", 0o104755, b"#!/bin/sh\n"),
            ("./usr/src/nvidia-580.95.05/nv.o", 0o120777, b"nv.o_binary"),
            ("./usr/lib/modprobe.d/nvidia.conf", 0o100644, b"x"),
        ),
    )
    assert kernel_modules.sources(folder / "usr/src") == [kernel_modules.Source("nvidia", "580.95.05")]
    assert (folder / "usr/src/nvidia-580.95.05/conftest.sh").stat().st_mode & 0o7777 == 0o755
    assert (folder / "usr/src/nvidia-580.95.05/nv.o").readlink() == Path("nv.o_binary")
    assert sorted(path.name for path in folder.iterdir()) == ["usr"]
    assert not (folder / "usr/lib").exists()


@pytest.mark.parametrize(
    "entry",
    [
        ("usr/src/../../../out", 0o100644, b"x"),
        ("/usr/src/../../out", 0o100644, b"x"),
        ("usr/src/link", 0o120777, b"../../../.."),
        ("usr/src/link", 0o120777, b"/etc"),
    ],
)
def test_nothing_in_an_rpm_leads_out_of_the_folder(tmp_path, entry):
    folder = unpack_rpm(tmp_path, cpio(entry))
    assert [path for path in tmp_path.rglob("*") if path.name in ("out", "link")] == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"no cpio at all" * 20, cpio(("usr/src/a", 0o100644, b"x" * 400))[:150]])
def test_a_torn_rpm_is_refused(tmp_path, data):
    with pytest.raises(DriverError, match="ends too early or is damaged"):
        unpack_rpm(tmp_path, data)


# -- installing -------------------------------------------------------------------------------------------------------


def test_modules_are_built_for_exactly_the_kernels_and_the_version_that_were_asked_for(tmp_path):
    source(tmp_path / "usr/src", "nvidia-current-open", "550.163.01")
    source(tmp_path / "usr/src", "nvidia-current", "535.261.03")
    source(tmp_path / "usr/src", "zfs", "2.3.1")
    dkms = Dkms()
    assert kernel_modules.build(dkms, (K,), "550.163.01", 900, str(tmp_path)) == []
    assert dkms.asked == [["dkms", "install", "--force", "-m", "nvidia-current-open", "-v", "550.163.01", "-k", K]]


def test_what_an_interrupted_build_left_is_removed_first(tmp_path):
    source(tmp_path / "usr/src", "nvidia", "580.95.05")
    (tmp_path / f"var/lib/dkms/nvidia/580.95.05/{K}").mkdir(parents=True)
    dkms = Dkms()
    kernel_modules.build(dkms, (K, OTHER), "580.95.05", 900, str(tmp_path))
    assert [(argv[1], argv[-1]) for argv in dkms.asked] == [("remove", K), ("install", K), ("install", OTHER)]


def test_an_installed_build_that_fails_is_a_failure_with_the_compilers_line(tmp_path):
    source(tmp_path / "usr/src", "nvidia-current-open", "550.163.01")
    dkms = Dkms({K: (Done(10, ""), recorded("make-550.163.01-6.12.107.txt"))})
    dkms.installed = str(tmp_path / "var/lib/dkms")
    (failure,) = kernel_modules.build(dkms, (OTHER, K), "550.163.01", 900, str(tmp_path))
    assert (failure.kernel, failure.compiler) == (K, (COMPILER,))


@pytest.mark.parametrize(
    "head",
    [
        "DKMS (dkms-3.2.2) make.log for nvidia-current-open/550.163.01",
        "DKMS make.log for nvidia-current-open-550.163.01",
    ],
)
def test_a_build_that_a_packages_script_made_is_told_before_its_log_is_gone(tmp_path, head):
    log = tmp_path / "var/lib/dkms/nvidia-current-open/550.163.01/build/make.log"
    log.parent.mkdir(parents=True)
    words = recorded("make-550.163.01-6.12.107.txt").partition("\n")[2]
    log.write_text(f"{head} for kernel {K} (x86_64)\n{words}")
    other = tmp_path / "var/lib/dkms/nvidia/580.95.05/build/make.log"
    other.parent.mkdir(parents=True)
    other.write_text("")  # just begun when it was killed
    (failure,) = kernel_modules.left_behind(str(tmp_path))
    assert (failure.kernel, failure.module, failure.compiler) == (K, "nvidia-current-open 550.163.01", (COMPILER,))
    assert Path(failure.log).read_text() == log.read_text()
    assert kernel_modules.left_behind(str(tmp_path / "elsewhere")) == []


def test_without_sources_there_is_nothing_to_build_from(tmp_path):
    (failure,) = kernel_modules.build(Dkms(), (K,), "580.95.05", 900, str(tmp_path))
    assert "no DKMS sources of this version" in failure.why


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("PACKAGE_NAME='nvidia'\nPACKAGE_VERSION=580.95.05\n", True),
        ('PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="#MODULE_VERSION#"\n', True),
        ('PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="570.1"\n', False),
    ],
)
def test_a_source_is_known_by_what_dkms_would_look_for(tmp_path, text, found):
    source(tmp_path, "nvidia", "580.95.05", text)
    assert kernel_modules.sources(tmp_path) == ([kernel_modules.Source("nvidia", "580.95.05")] if found else [])


# -- proving ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path):
    """A host whose modules are JSON files, which its modinfo reads."""

    def modinfo(argv, _limit):
        fields = json.loads(Path(argv[-1]).read_text())
        if not fields:
            raise Unreadable("the command ended with status 1")
        return f"filename:   {argv[-1]}\0" + "".join(f"{name}={value}\0" for name, value in fields.items())

    return Host(root=str(tmp_path), run=modinfo)


GOOD = {
    "version": "580.95.05",
    "license": "Dual MIT/GPL",
    "vermagic": f"{K} SMP preempt mod_unload modversions",
    "signer": "DKMS key",
}


def modules(
    root: Path, place="updates/dkms", base="nvidia", release=K, listed=True, parts=("", "-modeset", "-uvm"), **changes
):
    folder = root / f"lib/modules/{release}/{place}"
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        (folder / f"{base}{part}.ko.zst").write_text(json.dumps({**GOOD, **changes}))
    if listed:
        (root / f"lib/modules/{release}/modules.dep").write_text(f"{place}/{base}.ko.zst:\n")
    return folder


@pytest.mark.parametrize(
    ("place", "base"),
    [
        ("updates/dkms", "nvidia"),
        ("updates/dkms", "nvidia-current-open"),
        ("extra", "nvidia"),
        ("extra/drivers/video/nvidia", "nvidia"),
        ("kernel/nvidia-580-open", "nvidia"),
    ],
)
def test_a_right_module_is_proven_wherever_packages_put_it(tmp_path, host, place, base):
    modules(tmp_path, place, base)
    assert kernel_modules.lacking(host, [K], "580.95.05", "open", secure_boot=True) == {}
    assert kernel_modules.proven(host, [K, OTHER]) == [
        kernel_modules.Module(K, "580.95.05", "open", f"/lib/modules/{K}/{place}/{base}.ko.zst")
    ]


def test_a_module_that_weak_modules_linked_may_be_of_another_kernel(tmp_path, host):
    folder = modules(tmp_path, "extra", release="5.14.0-1.el9.x86_64", vermagic="5.14.0-1.el9.x86_64 SMP")
    weak = tmp_path / "lib/modules/5.14.0-2.el9.x86_64/weak-updates"
    weak.mkdir(parents=True)
    for file in folder.iterdir():
        (weak / file.name).symlink_to(f"/lib/modules/5.14.0-1.el9.x86_64/extra/{file.name}")
    (weak.parent / "modules.dep").write_text("weak-updates/nvidia.ko.zst:\n")
    assert kernel_modules.lacking(host, ["5.14.0-2.el9.x86_64"], "580.95.05", "open") == {}
    (folder / "nvidia.ko.zst").unlink()
    assert (
        "cannot be read"
        in kernel_modules.lacking(host, ["5.14.0-2.el9.x86_64"], "580.95.05", "open")["5.14.0-2.el9.x86_64"]
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": "570.195.03"}, "is version 570.195.03, not 580.95.05"),
        ({"license": "NVIDIA"}, "is of the proprietary flavor, not open"),
        ({"vermagic": f"{OTHER} SMP"}, f"was built for kernel {OTHER}"),
        ({"vermagic": ""}, "was built for kernel unknown"),
        ({"signer": ""}, "is not signed, and Secure Boot is on"),
        ({"parts": ("", "-modeset")}, "nvidia-uvm.ko.zst is missing"),
        ({"listed": False}, f"modules.dep does not list /lib/modules/{K}/updates/dkms/nvidia.ko.zst; depmod {K}"),
        ({"parts": ()}, "it has no NVIDIA module"),
    ],
)
def test_a_wrong_module_is_no_module(tmp_path, host, changes, problem):
    modules(tmp_path, **changes)
    assert problem in kernel_modules.lacking(host, [K], "580.95.05", "open", secure_boot=True)[K]


def test_parts_of_another_version_beside_the_right_one_are_found(tmp_path, host):
    folder = modules(tmp_path)
    (folder / "nvidia-uvm.ko.zst").write_text(json.dumps({**GOOD, "version": "570.195.03"}))
    assert "nvidia-uvm.ko.zst is version 570.195.03" in kernel_modules.lacking(host, [K], "580.95.05", "open")[K]


def test_an_unsigned_module_will_do_without_secure_boot(tmp_path, host):
    modules(tmp_path, signer="")
    assert kernel_modules.lacking(host, [K], "580.95.05", "open") == {}


def test_a_damaged_module_and_a_kernel_without_one_are_told_apart(tmp_path, host):
    folder = modules(tmp_path)
    (folder / "nvidia.ko.zst").write_text("{}")
    found = kernel_modules.lacking(host, [K, OTHER], "580.95.05", "open")
    assert "cannot be read: the command ended with status 1" in found[K]
    assert found[OTHER] == "it has no NVIDIA module"
    assert kernel_modules.proven(host, [K, OTHER]) == []


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("550.163.01-2", "550.163.01"),
        ("3:580.178.04-1.el9", "580.178.04"),
        ("580.95.05-0ubuntu0.24.04.1", "580.95.05"),
        ("1.0", "1.0"),
    ],
)
def test_nvidias_version_out_of_a_packages(package, version):
    assert kernel_modules.driver_version(package) == version
