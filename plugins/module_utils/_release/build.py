# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: make the files of a release, at their final place, so that nothing can change them afterwards.

Who may write what, and when:

* uv downloads and installs as the build account. It runs no code of any package: only wheels are allowed, and bytecode is
  not compiled by uv, whose compiler would start the environment's Python together with its .pth files.
* The directory above uv's cache belongs to root and is closed to the build account except while uv runs. So code of a package, which
  first runs in the proof, can reach neither the cache nor another release.
* The first release after an empty cache shares its files with the cache, as hard links; later ones get copies. So two releases never share
  a file, and what the cache shares belongs to root once the release is sealed. A second release of a set costs its bytes again; in
  exchange no damage spreads. (Links for all of them are not possible anyway: the kernel's fs.protected_hardlinks refuses the build account
  links to root's files, and uv 0.13 then gives up where two wheels hold the same file, as torch's do.)
* Files that come from an older cache are compared with the hashes in RECORD before anybody may use them.
* A cache that is older than a week is dropped before a build: it serves the environments of one run, and must not fill the disk.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import time
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, record, startup, tool
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import (
    BUILD_ACCOUNT,
    SYSTEM_PATH,
    Layout,
    ReleaseError,
    Request,
    hide_credentials,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.processes import (
    Account,
    Ended,
    end,
    run_as,
    users_of,
)

PASSED_ON = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_HTTP_TIMEOUT",
    "UV_HTTP_RETRIES",
    "UV_INSECURE_HOST",
    "UV_SYSTEM_CERTS",
)
"""Variables of the task that reach uv. Everything else is left behind."""

MIB = 1024 * 1024
_REFUSED = re.compile(r"^\w*Error: \[Errno \d+\]", re.MULTILINE)
_ACCOUNT_COMMENT = "builds the environments of gpufleet.workstation"
_CACHE_KEPT = 7 * 24 * 3600
_CACHE_OPEN, _CACHE_CLOSED = 0o710, 0o700
_UNKNOWN_NEED_MIB = 8192
_UNKNOWN_NEED_INODES = 60000
_USUAL_BYTES = 7_000_000_000


class PoisonedCache(ReleaseError):
    """Files that came from the cache are not what their wheels hold."""


def build_account(cache: str) -> Account:
    """The system account that builds; it is created where the host has none."""
    try:
        account = Account.of(BUILD_ACCOUNT)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", cache]
        command += ["--shell", "/usr/sbin/nologin", "--comment", _ACCOUNT_COMMENT, BUILD_ACCOUNT]
        problem = _administer(command)
        if problem is not None:
            remedy = f"Create a system account {BUILD_ACCOUNT}, then run again."
            raise ReleaseError("create the build account", problem, remedy) from None
        account = Account.of(BUILD_ACCOUNT)
    if account.uid == 0:
        cause = f"{BUILD_ACCOUNT} has the uid of root"
        raise ReleaseError("create the build account", cause, "Give that account a uid of its own.")
    return account


def remove_build_account() -> str | None:
    """Remove the system account if it is the one that build_account() creates; says what stood in the way, if anything."""
    try:
        ours = pwd.getpwnam(BUILD_ACCOUNT).pw_gecos == _ACCOUNT_COMMENT
    except KeyError:
        return None
    return _administer(["userdel", BUILD_ACCOUNT]) if ours else None


def _administer(command: list[str]) -> str | None:
    """Run a program of shadow-utils; returns what it complains about."""
    environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} cannot run: {error}"
    return None if done.returncode == 0 else f"{command[0]} says: {done.stderr.strip()}"


def check_room(directory: str, need_mib: int, need_inodes: int) -> None:
    """Refuse to begin where the disk cannot hold the release."""
    room = os.statvfs(directory)
    free_mib = room.f_bavail * room.f_frsize // MIB
    if free_mib < need_mib:
        raise ReleaseError(
            "check the disk",
            f"{directory} has {free_mib} MiB free, the release needs {need_mib} MiB",
            "Free space there, or choose another torch_env_root.",
        )
    if room.f_files and room.f_favail < need_inodes:
        raise ReleaseError(
            "check the disk",
            f"{directory} has {room.f_favail} inodes free, the release needs {need_inodes}",
            "Remove files there, or choose another torch_env_root.",
        )


def estimate(stamps: t.Iterable[dict[str, t.Any]], spec: dict[str, t.Any]) -> tuple[int, int]:
    """(MiB, inodes) that a release of ``spec`` needs, judged by an earlier one with the same torch, else from experience."""
    sizes = [
        (int(stamp["bytes"]), int(stamp["files"]))
        for stamp in stamps
        if stamp["spec"].get("torch") == spec["torch"] and stamp["spec"].get("companions") == spec.get("companions")
    ]
    if not sizes:
        return _UNKNOWN_NEED_MIB, _UNKNOWN_NEED_INODES
    size, files = max(sizes)
    return size * 5 // 4 // MIB + 64, files * 2 + 2000


def expected_bytes(stamps: t.Iterable[dict[str, t.Any]], spec: dict[str, t.Any]) -> tuple[int, str]:
    """What a release of ``spec`` will hold, for people who watch it come, and how that is known."""
    sizes = [int(stamp["bytes"]) for stamp in stamps if stamp["spec"].get("torch") == spec["torch"]]
    return (max(sizes), "an earlier release of this torch") if sizes else (_USUAL_BYTES, "experience")


def drop_cache(layout: Layout) -> None:
    """Remove uv's cache, so that the next build takes everything from the index. Raises OSError."""
    shutil.rmtree(os.path.join(layout.cache, "uv"))


def _is_fresh(cache: str) -> bool:
    """Whether uv made this cache within the last week; not so where its mark is missing or comes from the future."""
    try:
        age = time.time() - os.stat(os.path.join(cache, "CACHEDIR.TAG")).st_mtime
    except OSError:
        return False
    return 0 <= age < _CACHE_KEPT


class Builder:
    """Builds one release as the build account, within one time limit."""

    def __init__(
        self, request: Request, release_id: str, uv: str, account: Account, groups: t.Sequence[int] = ()
    ) -> None:
        self._request = request
        self._release = request.layout.release(release_id)
        self._uv = uv
        self._account = account
        self._groups = groups
        self._deadline = time.monotonic() + request.time_limit
        self._cache = os.path.join(request.layout.cache, "uv")
        self._scratch = os.path.join(request.layout.cache, "home")
        self._warm = False

    def prepare(self) -> None:
        """Make the empty release directory and the cache; both belong to the build account."""
        os.makedirs(self._request.layout.cache, mode=0o700, exist_ok=True)
        os.chmod(self._request.layout.cache, _CACHE_CLOSED)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._warm = os.path.isdir(self._cache)
        if self._warm and not _is_fresh(self._cache):
            drop_cache(self._request.layout)
            self._warm = False
        for directory in (self._cache, self._scratch, self._release):
            os.makedirs(directory, mode=0o700, exist_ok=directory == self._cache)
            os.chown(directory, self._account.uid, self._account.gid)

    @contextlib.contextmanager
    def _open_cache(self) -> t.Iterator[None]:
        """Let the build account reach the cache, for as long as only uv runs."""
        cache = self._request.layout.cache
        os.chown(cache, 0, self._account.gid)
        os.chmod(cache, _CACHE_OPEN)
        try:
            yield
        finally:
            os.chmod(cache, _CACHE_CLOSED)

    def venv(self) -> None:
        """Make the empty virtual environment."""
        command = [
            "venv",
            "--no-project",
            "--prompt",
            self._request.layout.name,
            "--python",
            self._request.interpreter,
            self._release,
        ]
        with self._open_cache():
            self._run_uv("make the virtual environment", command)

    def install(self) -> None:
        """Install what the lock names, with its hashes: torch's family from the torch index, all else from the package index."""
        wanted = lock.parse(self._request.lock)
        python = os.path.join(self._release, "bin", "python")
        command = [
            "pip",
            "install",
            "--no-build",
            "--no-deps",
            "--require-hashes",
            "--python",
            python,
            "--requirements",
            "-",
        ]
        with self._open_cache():
            step = f"install torch {self._request.spec['torch']}"
            self._run_uv(step, command, text=wanted.part(torch_index=True), index=self._request.index_url)
            step = "install what torch and the requirements need"
            self._run_uv(step, command, text=wanted.part(torch_index=False), index=self._request.package_index_url)
            self._run_uv("check the requirements", ["pip", "check", "--python", python])
        shutil.rmtree(self._scratch, ignore_errors=True)

    def check_record(self) -> None:
        """Compare what was installed with RECORD: sizes, and contents too where the cache is older than this build."""
        wrong = record.problems(self._release, hashes=self._warm)
        if wrong:
            kind = PoisonedCache if self._warm else ReleaseError
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise kind(
                "compare the files with RECORD",
                "; ".join(wrong[:5]) + more,
                "Check the disk and the index or mirror, then run again.",
                problems=wrong[:50],
            )

    def add_startup_files(self) -> None:
        """Put the module that sets the runtime variables beside the packages. No package may bring the same names."""
        packages = record.site_packages(self._release)
        for name, content in ((startup.MODULE_NAME, startup.MODULE), (startup.PTH_NAME, startup.PTH)):
            try:
                descriptor = os.open(
                    os.path.join(packages, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644
                )
            except FileExistsError as error:
                raise ReleaseError(
                    "add the start-up module",
                    f"a package brings its own {name}",
                    "Leave that package out of requirements.",
                ) from error
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)

    def compile(self) -> None:
        """Compile bytecode, which users of the read-only release could not write. With -S no .pth file of a package runs.

        The packages' own test suites, a fifth of the text in torch's family, are left out: they run without bytecode as well.
        """
        python = os.path.join(self._release, "bin", "python")
        packages = record.site_packages(self._release)
        argv = [python, "-I", "-S", "-m", "compileall", "-q", "-j", "0", "-x", "/site-packages/.*/tests/", packages]
        ended = self._run("compile bytecode", argv, {"PATH": SYSTEM_PATH, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"})
        # 1: some file, for example a template, is no valid Python; or the disk refused, which must not leave a release half compiled.
        if ended.returncode not in (0, 1) or _REFUSED.search(ended.output):
            cause, remedy = tool.explain(ended.output)
            raise ReleaseError("compile bytecode", f"compileall {_how(ended)}: {cause}", remedy)

    def seal(self) -> None:
        """Give everything to root and take away every right to write that others have."""
        step = "take ownership"
        users = users_of([self._release])
        if users is None:
            cause = "it cannot be said whether a process still writes into the release"
            raise ReleaseError(step, cause, "Look for hung processes (state D).")
        end(users[self._release], self._account.uid)
        seal_tree(self._release, os.path.realpath(self._request.interpreter))

    def discard(self) -> None:
        """Remove the unfinished release."""
        shutil.rmtree(self._release, ignore_errors=True)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _run_uv(self, step: str, command: list[str], text: str = "", index: str = "") -> None:
        environment = self._uv_environment(index)
        ended = self._run(step, [self._uv, "--no-progress", "--color", "never", *command], environment, text)
        if ended.returncode != 0:
            cause, remedy = tool.explain(ended.output)
            source = f" from {hide_credentials(index)}" if index else ""
            if ended.returncode < 0:
                cause, remedy = f"uv {_how(ended)}", "Look in the kernel's log whether memory ran out, then run again."
                raise ReleaseError(step + source, cause, remedy)
            raise ReleaseError(step + source, f"uv says: {cause}", remedy)

    def _uv_environment(self, index: str) -> dict[str, str]:
        """A clean environment; index URLs go through it because everybody can read a command line."""
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment.update(
            PATH=SYSTEM_PATH,
            LC_ALL="C.UTF-8",
            HOME=self._scratch,
            TMPDIR=self._scratch,
            UV_CACHE_DIR=self._cache,
            UV_LINK_MODE="copy" if self._warm else "hardlink",
            UV_PYTHON_DOWNLOADS="never",
        )
        if index:
            environment["UV_DEFAULT_INDEX"] = index
        return environment

    def _run(self, step: str, argv: list[str], environment: dict[str, str], text: str = "") -> Ended:
        left = self._deadline - time.monotonic()
        directory = self._scratch if os.path.isdir(self._scratch) else "/"
        try:
            ended = run_as(
                self._account,
                argv,
                environment=environment,
                directory=directory,
                time_limit=left,
                groups=self._groups,
                text=text,
            )
        except OSError as error:
            cause = f"{argv[0]} cannot be started: {error.strerror}"
            raise ReleaseError(step, cause, "Check that it exists and may be executed.") from error
        if ended.timed_out:
            raise ReleaseError(
                step,
                f"it took longer than the time limit of {self._request.time_limit:.0f} s for a build",
                "Raise torch_env_build_time_limit, or use an index nearer to the host.",
            )
        return ended


def _how(ended: Ended) -> str:
    """How a program ended, in words."""
    if ended.returncode < 0:
        return f"was ended by {signal.Signals(-ended.returncode).name}"
    return f"ended with {ended.returncode}"


def seal_tree(top: str, interpreter: str) -> None:
    """Give a tree to root: directories and programs 0755, files 0644. Never follows a link.

    A directory is taken first and read afterwards: from then on nobody else can exchange its entries. Raises ReleaseError
    for anything that has no place in an environment.
    """
    pending = [top]
    while pending:
        directory = pending.pop()
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchown(descriptor, 0, 0)
            os.fchmod(descriptor, 0o755)
        finally:
            os.close(descriptor)
        with os.scandir(directory) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    pending.append(entry.path)
                    continue
                os.lchown(entry.path, 0, 0)
                if stat.S_ISREG(mode):
                    wanted = 0o755 if mode & 0o111 else 0o644
                    if stat.S_IMODE(mode) != wanted:
                        os.chmod(entry.path, wanted)
                elif not stat.S_ISLNK(mode) or not _stays_inside(entry.path, top, interpreter):
                    raise ReleaseError(
                        "take ownership",
                        f"{os.path.relpath(entry.path, top)} is a special file or a link that leads out of the release",
                        "Leave the package that brings it out of requirements.",
                    )


def _stays_inside(link: str, top: str, interpreter: str) -> bool:
    target = os.path.realpath(link)
    return target == interpreter or target.startswith(os.path.realpath(top) + os.sep)
