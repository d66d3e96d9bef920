# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Build the driver's kernel modules and prove them, kernel by kernel.

What a package manager or DKMS says of a build proves nothing: a module counts when its file lies where the kernel's own
modprobe finds it, in the right version and flavor, built for that kernel. A build that fails is an outcome, not an exception:
it becomes a `Failure` that quotes the compiler.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import kernels
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.child import NoAnswer
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable, reason

from .commands import NOT_THERE, Done, Run
from .model import DriverError, PackageFile

SOURCES = "/usr/src"
TREE = "/var/lib/dkms"
LOGS = "/var/lib/gpufleet/build-logs"
WAYS_OUT = (
    "Ways out: boot a kernel for which it builds and remove the one that fails; choose another nvidia_driver_branch or"
    " nvidia_driver_source; or wait for a package that builds. Then run again."
)

# Packages that bring DKMS sources: nvidia-kernel-open-dkms, nvidia-open-kernel-dkms, kmod-nvidia-open-dkms, nvidia-dkms-580-open, and
# Ubuntu's nvidia-kernel-source-580-open, in which the sources of the latter lie.
_WITH_SOURCES = re.compile(r"nvidia.*(?:dkms|kernel-source)")
_VERSION = re.compile(r"\d{2,4}\.\d+(?:\.\d+)?")
_LOG_LIMIT = 4 * 1024 * 1024
_UNPACK_LIMIT = 300.0
_MODINFO_LIMIT = 30.0
_COMPILER = re.compile(r"^([^\s:][^:\n]*):(\d+)(?::\d+)?: ((?:fatal )?error: .+)$", re.MULTILINE)
_LINKER = re.compile(r"^ERROR: modpost: .+$|^\S*ld(?:\.\w+)?: .*(?:undefined|cannot find|error).*$", re.MULTILINE)
_MAKE = re.compile(r"\*\*\* (?!\[|Waiting )(.+)$", re.MULTILINE)
_HEAD = re.compile(r"^DKMS .*make\.log for .* for kernel (\S+)", re.MULTILINE)
_BUILD_FOLDER = re.compile(r"^.*/\d[\w.]*/build/")
# DKMS signs what it builds and makes a key for that where there is none. A trial needs no signature and leaves no key: every version
# that signs takes this variable from its environment, and does not sign where the program is not there.
_UNSIGNED = {"sign_file": "/nonexistent"}


@dataclass(frozen=True)
class Source:
    """A DKMS source tree: <folder>/<name>-<version>."""

    name: str
    version: str


@dataclass(frozen=True)
class Module:
    """The module that one kernel would load."""

    release: str
    version: str
    flavor: str
    path: str


@dataclass(frozen=True)
class Failure:
    """Why there is no module for a kernel. ``compiler`` holds the compiler's own first lines, where it came that far."""

    kernel: str
    module: str
    why: str
    remedy: str = WAYS_OUT
    compiler: tuple[str, ...] = ()
    log: str = ""

    def __str__(self) -> str:
        words = f" The compiler says: {'; '.join(self.compiler)}." if self.compiler else ""
        log = f" The whole log is {self.log}." if self.log else ""
        return f"{self.module} for kernel {self.kernel}: {self.why}.{words}{log}"


def explain(failures: t.Sequence[Failure]) -> str:
    """Say of failed builds what failed and what to do, each way out once."""
    return " ".join([*map(str, failures), *dict.fromkeys(failure.remedy for failure in failures)])


def driver_version(text: str) -> str:
    """Return NVIDIA's own version out of a package's: "3:580.178.04-1.el9" is 580.178.04."""
    match = _VERSION.search(text.rpartition(":")[2])
    return match.group() if match else text


def compiler_lines(log: str, limit: int = 3) -> list[str]:
    """Return the first errors in a make.log: the compiler's, else the linker's, else make's own."""
    found = [
        f"{_BUILD_FOLDER.sub('', file)}:{line}: {words.strip()}" for file, line, words in _COMPILER.findall(log)
    ] or _LINKER.findall(log)
    found = found or _MAKE.findall(log)
    return list(dict.fromkeys(line.strip()[:300] for line in found))[:limit]


def sources(folder: Path) -> list[Source]:
    """Return NVIDIA's DKMS sources in a folder such as /usr/src."""
    found = []
    for path in sorted(folder.glob("nvidia*/dkms.conf")):
        text = path.read_text(encoding="utf-8", errors="replace")
        named = dict(re.findall(r"^PACKAGE_(NAME|VERSION)=[\"']?([\w.+-]+)[\"']?\s*$", text, re.MULTILINE))
        name, _dash, version = path.parent.name.rpartition("-")
        source = Source(named.get("NAME", name), named.get("VERSION", version))
        if path.parent.name == f"{source.name}-{source.version}":  # DKMS finds no other
            found.append(source)
    return found


# -- building ---------------------------------------------------------------------------------------------------------


def trial_build(
    run: Run, files: t.Sequence[PackageFile], releases: t.Sequence[str], work: Path, time_limit: float
) -> list[Failure]:
    """Build the modules of packages that are not installed, for each kernel, and leave nothing behind but failures' logs.

    ``work`` is emptied before and removed afterwards, logs go beside it; ``time_limit`` counts for each build. Packages without
    DKMS sources (modules that come compiled) have nothing to try.
    """
    chosen = [file for file in files if _WITH_SOURCES.search(file.package.name)]
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    try:
        work.mkdir(parents=True, mode=0o700)
        for file in chosen:
            unpack(run, file.path, work / "unpacked")
        folder = work / "unpacked" / SOURCES.lstrip("/")
        failures: list[Failure] = []
        for number, (release, source) in enumerate(itertools.product(releases, sources(folder))):
            tree = work / f"tree{number}"
            tree.mkdir()
            argv = ["nice", "-n", "10", "dkms", "build", "--sourcetree", str(folder), "--dkmstree", str(tree)]
            done = run([*argv, *_words(source, release)], time_limit, _UNSIGNED)
            if done.status == 0 and not any(tree.glob(f"{source.name}/{source.version}/{release}/*/module/*.ko*")):
                done = Done(1, "dkms says that it succeeded, but built nothing")
            failures += _outcome(done, source, release, tree, time_limit, work.parent / os.path.basename(LOGS))
            shutil.rmtree(tree, ignore_errors=True)
        return failures
    finally:
        shutil.rmtree(work, ignore_errors=True)


def build(run: Run, releases: t.Sequence[str], version: str, time_limit: float, root: str = "") -> list[Failure]:
    """Build and install the modules of the installed packages for kernels that lack them. ``time_limit`` counts for each build."""
    found = [source for source in sources(Path(f"{root}{SOURCES}")) if source.version == version]
    if not found:
        why = f"{SOURCES} holds no DKMS sources of this version"
        remedy = "The packages are incomplete: run again to have them repaired."
        return [Failure(release, f"nvidia {version}", why, remedy) for release in releases]
    failures: list[Failure] = []
    for release, source in itertools.product(releases, found):
        words = _words(source, release)
        if os.path.isdir(f"{root}{TREE}/{source.name}/{source.version}/{release}"):
            # A build that was interrupted, or whose file is gone from /lib/modules: DKMS takes it for done.
            run(["dkms", "remove", *words], time_limit)
        done = run(["dkms", "install", "--force", *words], time_limit)
        failures += _outcome(done, source, release, Path(f"{root}{TREE}"), time_limit, Path(root + LOGS))
    return failures


def left_behind(root: str = "") -> list[Failure]:
    """Return what failed when the scripts of packages built modules, before the packages are put back and DKMS's log with them.

    DKMS keeps one log for each version, the last one; a build that succeeds takes its log along.
    """
    failures: list[Failure] = []
    for path in sorted(Path(f"{root}{TREE}").glob("nvidia*/*/build/make.log")):
        head = _HEAD.search(_tail(path)[:4096])
        if head:
            source, release = Source(path.parts[-4], path.parts[-3]), head.group(1)
            failures += _outcome(Done(10, ""), source, release, Path(f"{root}{TREE}"), 0, Path(root + LOGS))
    return failures


def _words(source: Source, release: str) -> list[str]:
    return ["-m", source.name, "-v", source.version, "-k", release]


def _outcome(
    done: Done, source: Source, release: str, tree: Path, time_limit: float, logs: Path
) -> t.Iterator[Failure]:
    """Yield what went wrong, and keep the log: DKMS holds one log a version, the next build overwrites it."""
    kept = logs / f"{source.name}-{source.version}-{release}.log"
    with contextlib.suppress(OSError):  # it says nothing any more, whatever comes now
        kept.unlink()
    if done.status == 0:
        return
    log = _tail(tree / source.name / source.version / "build/make.log")
    place = ""
    if log:
        with contextlib.suppress(OSError):  # a full disk may be the very cause
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(log, encoding="utf-8")
            place = str(kept)
    why, remedy = _cause(done, log, release, time_limit)
    yield Failure(release, f"{source.name} {source.version}", why, remedy, tuple(compiler_lines(log)), place)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_LIMIT))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""  # dkms stopped before there was a log


def _cause(done: Done, log: str, release: str, time_limit: float) -> tuple[str, str]:
    """Say why a build failed and what helps."""
    said = done.output + log
    if done.status == NOT_THERE and not log:
        return "dkms is not installed", "Install dkms (on Enterprise Linux it comes from EPEL), then run again."
    if done.timed_out:
        return (
            f"the build was ended after {time_limit:g} s",
            "See what else keeps the host busy, or allow more time, then run again.",
        )
    if re.search(r"kernel headers for kernel .* cannot be found|kernel source.* cannot be found", said):
        return (
            "the kernel's headers are not installed",
            f"Install linux-headers-{release} (Enterprise Linux: kernel-devel-{release}), then run again. Where the archive has them no"
            " longer, boot a kernel that has its headers and remove this one.",
        )
    if "No space left on device" in said:
        return "the disk is full", "Free 2 GB in /var and /tmp, then run again."
    if re.search(
        r"Killed signal terminated program|virtual memory exhausted|out of memory|^Killed$", said, re.MULTILINE
    ):
        return "the compiler ran out of memory", "Free memory (a build takes 1 to 2 GB), then run again."
    if re.search(r"BUILD_EXCLUSIVE", said) or done.status == 77:
        return "the driver's own dkms.conf excludes this kernel (BUILD_EXCLUSIVE)", WAYS_OUT
    missing = re.search(
        r"(\S*(?:gcc|clang|cc|make|ld)(?:-\d+)?): (?:command )?not found|no acceptable C compiler", said
    )
    if missing:
        name = os.path.basename(missing.group(1) or "gcc")
        return f"{name} is not installed", f"Install {name}, with which this kernel was compiled, then run again."
    if _COMPILER.search(log) or _LINKER.search(log):
        return "it does not compile: this version of the driver does not know this kernel", WAYS_OUT
    # The lines after the error tell of files that are gone by now.
    errors = re.findall(r"^Error! (.+)$", done.output, re.MULTILINE)
    return f"the build failed: {errors[0] if errors else done.last_words}", WAYS_OUT


# -- unpacking --------------------------------------------------------------------------------------------------------


def unpack(run: Run, package: Path, folder: Path) -> None:
    """Unpack a .deb, or /usr/src of an .rpm, without installing it."""
    remedy = f"Free space in {folder}, or remove {package} to have it fetched anew; then run again."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if package.suffix == ".rpm":
            payload = folder / f".{package.name}.cpio"
            # rpm2cpio has no option to write into a file, and its output is no text.
            done = run(["sh", "-c", 'exec rpm2cpio "$1" > "$2"', "sh", str(package), str(payload)], _UNPACK_LIMIT)
            if done.status == 0:
                with payload.open("rb") as file:
                    _unpack_cpio(file, folder)
                payload.unlink()
        else:
            done = run(["dpkg-deb", "--extract", str(package), str(folder)], _UNPACK_LIMIT)
    except (OSError, ValueError) as error:
        raise DriverError(f"{package.name} cannot be unpacked: {reason(error)}. {remedy}") from error
    if done.status != 0:
        raise DriverError(f"{package.name} cannot be unpacked: {done.last_words}. {remedy}")


def _unpack_cpio(file: t.BinaryIO, folder: Path) -> None:
    """Write what a cpio archive (newc, which rpm uses) has below usr/src; neither links nor parents lead out of there."""
    while True:
        header = file.read(110)
        if len(header) < 110 or header[:6] not in (b"070701", b"070702"):
            raise ValueError("its archive ends too early or is damaged")
        mode, size, name_size = (int(header[at : at + 8], 16) for at in (14, 54, 94))
        name = os.path.normpath(file.read(name_size).rstrip(b"\0").decode("utf-8", "replace").lstrip("/"))
        file.read(-(110 + name_size) % 4)
        content = file.read(size)
        file.read(-size % 4)
        if name == "TRAILER!!!":
            return
        target = folder / name
        if not name.startswith("usr/src/"):
            continue
        if mode & 0o170000 == 0o100000:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(mode & 0o755)
        elif mode & 0o170000 == 0o120000:
            link = content.decode("utf-8", "replace")
            if not os.path.isabs(link) and os.path.normpath(os.path.join(os.path.dirname(name), link)).startswith(
                "usr/src/"
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(link)


# -- proving ----------------------------------------------------------------------------------------------------------


def proven(host: Host, releases: t.Sequence[str]) -> list[Module]:
    """Return the modules that these kernels would load, as far as there are any that can be read."""
    found = []
    for release in releases:
        with contextlib.suppress(Unreadable, NoAnswer, OSError):  # lacking() says why
            path = kernels.module_path(host, release)
            if path:
                facts = kernels.module_facts(host, path)
                found.append(Module(release, facts["version"] or "", facts["flavor"] or "", path))
    return found


def lacking(
    host: Host, releases: t.Sequence[str], version: str, flavor: str, secure_boot: bool = False
) -> dict[str, str]:
    """Return the kernels that would come up without this driver, each with the reason; none where all is proven."""
    found = {}
    for release in releases:
        try:
            problem = _problem(host, release, version, flavor, secure_boot)
        except (Unreadable, NoAnswer, OSError, ValueError, EOFError) as error:
            problem = f"its module cannot be read: {reason(error)}"
        if problem:
            found[release] = problem
    return found


def _problem(host: Host, release: str, version: str, flavor: str, secure_boot: bool) -> str:
    """Say what is wrong with a kernel's module; nothing where it is the right one."""
    path = kernels.module_path(host, release)
    if path is None:
        return "it has no NVIDIA module"
    folder, name = os.path.split(path)
    base, _dot, ending = name.partition(".")
    facts = kernels.module_facts(host, path)
    if facts["version"] != version:
        return f"{path} is version {facts['version']}, not {version}"
    if facts["flavor"] != flavor:
        return f"{path} is of the {facts['flavor'] or 'unknown'} flavor, not {flavor}"
    for part in ("", "-modeset", "-uvm"):
        file = f"{folder}/{base}{part}.{ending}"
        if not host.exists(file):
            return f"{file} is missing"
        fields = kernels.printed_fields(host.run(["modinfo", "-0", host.at(file)], _MODINFO_LIMIT))
        if fields.get("version", version) != version:
            return f"{file} is version {fields['version']}, not {version}"
        built_for = fields.get("vermagic", "").partition(" ")[0]
        # weak-modules links modules of another kernel after it has compared every symbol that they use.
        if built_for != release and "/weak-updates/" not in file:
            return f"{file} was built for kernel {built_for or 'unknown'}"
        if secure_boot and not (fields.get("signer") or fields.get("sig_id")):  # kmod without OpenSSL names no signer
            return f"{file} is not signed, and Secure Boot is on"
    listed = host.text(f"/lib/modules/{release}/modules.dep", 16 * _LOG_LIMIT) or ""
    if f"{path.partition(f'/{release}/')[2]}:" not in listed:
        return f"modules.dep does not list {path}; depmod {release} mends that"
    return ""
