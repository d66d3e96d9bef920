# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: what is asked of an environment, where it lies, and how failures are told."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, mounts

SCHEMA = 1
BUILD_ACCOUNT = "gpufleet"
"""System account that downloads, unpacks and compiles, and proves the environments whose owner is root."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_RELEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_SM = re.compile(r"sm_[0-9]{2,3}\Z")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.]*(\+[0-9A-Za-z.]+)?\Z")
_PROJECT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[A-Za-z0-9._,\s-]*\])?\s*([<>=!~][^@#;\\]*)?(;[^#\\]*)?\Z")


class ReleaseError(Exception):
    """A step failed. The environment that served before still serves."""

    def __init__(self, step: str, cause: str, remedy: str, **details: t.Any) -> None:
        super().__init__(f"{step}: {cause.rstrip('.')}. {remedy}")
        self.step = step
        self.cause = cause
        self.remedy = remedy
        self.details = details


class BadInput(ReleaseError):
    """A value cannot be used; nothing was changed."""

    def __init__(self, option: str, cause: str, remedy: str) -> None:
        super().__init__(option, cause, remedy)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The paths of one environment, as docs/architecture.md lays them out."""

    root: str
    name: str

    @property
    def home(self) -> str:
        return os.path.join(self.root, self.name)

    @property
    def releases(self) -> str:
        return os.path.join(self.home, "releases")

    @property
    def stamps(self) -> str:
        return os.path.join(self.home, "stamps")

    @property
    def takeaway(self) -> str:
        """What of the release that serves users may carry elsewhere, see takeaway.py."""
        return os.path.join(self.home, "takeaway")

    @property
    def cache(self) -> str:
        return os.path.join(self.root, ".cache")

    @property
    def tools(self) -> str:
        return os.path.join(self.root, ".tools")

    @property
    def lock(self) -> str:
        return os.path.join(self.root, ".lock")

    @property
    def job(self) -> str:
        """What is known of a build that is under way, see jobs.py."""
        return os.path.join(self.root, ".jobs", self.name)

    def link(self, which: str) -> str:
        """The symlink ``current`` or ``previous``."""
        return os.path.join(self.home, which)

    def release(self, release_id: str) -> str:
        return os.path.join(self.releases, release_id)

    def python(self, release_id: str) -> str:
        return os.path.join(self.releases, release_id, "bin", "python")

    def stamp(self, release_id: str) -> str:
        return os.path.join(self.stamps, release_id + ".json")

    def manifest(self, release_id: str) -> str:
        return os.path.join(self.stamps, release_id + ".manifest")

    def hashes(self, release_id: str) -> str:
        return os.path.join(self.stamps, release_id + ".hashes")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of one environment, checked."""

    layout: Layout
    spec: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    spec_digest: str = ""
    release_base: str = ""
    index_url: str = ""
    package_index_url: str = ""
    lock: str = ""
    interpreter: str = ""
    owner: str = "root"
    group: str = "root"
    keep: int = 2
    sm: tuple[str, ...] = ()
    time_limit: float = 3600.0
    proof_time_limit: float = 300.0
    lock_timeout: float = 300.0
    disk_required_mib: int = 0
    launcher: str = "/usr/local/bin/gpu-env"
    release: str = ""
    """The release to go back to; the previous one where none is named."""
    smoke: tuple[str, ...] = ()
    """A command that has to succeed before a release may become current."""
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    """What the smoke command and the files that users take away find, besides what runtime.env holds."""
    switch_after: str = "static"
    """The level of proof that a release has to pass before it may become current."""
    gpus: tuple[str, ...] = ()
    """PCI addresses of the GPUs that count for the quick proof; none means all."""
    integrity: str = "sizes"
    """How releases are compared with what was stamped: ``sizes`` or ``hashes``."""

    @property
    def expect(self) -> dict[str, t.Any]:
        """What the proof has to find in the environment."""
        return {"torch": self.spec["torch"], "companions": dict(self.spec.get("companions") or {})}


def digest(spec: dict[str, t.Any]) -> str:
    """The sha256 of a spec's canonical JSON."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def check_name(name: str) -> str:
    """Return ``name``, or raise BadInput where it could not be a directory in the root."""
    if not _NAME.match(name):
        raise BadInput(
            "name",
            f"{name!r} is no name for an environment",
            "Start with a lower-case letter or a digit, go on with those, '.', '_' or '-', and use at most 63 characters.",
        )
    return name


def check_root(root: str, mountinfo: str | None = None) -> str:
    """Return the real path of the root of all environments, or raise BadInput where it is no safe place for them.

    The root need not exist yet. It and what lies above it must belong to root, and nobody else may replace a part of it. Other
    hosts must not see it. ``mountinfo`` is the text of /proc/self/mountinfo, which is read where it is not given.
    """
    if not root.startswith("/") or not root.isprintable() or os.path.normpath(root) in ("/", "//"):
        raise BadInput(
            "root", f"{root!r} is no absolute path of a directory below /", "Use for example /opt/gpufleet/envs."
        )
    if ".." in root.split("/"):
        raise BadInput("root", f"{root!r} leads upwards with '..'", "Write the path without '..'.")
    real = os.path.realpath(root)
    part = real
    existing = ""
    while True:
        try:
            status = os.lstat(part)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise BadInput("root", f"{part} cannot be examined: {error.strerror}", "Choose another root.") from error
        else:
            existing = existing or part
            _check_directory(real, part, status)
        if part == "/":
            break
        part = os.path.dirname(part)
    if mountinfo is None:
        with open(mounts.PATH, encoding="utf-8", errors="surrogateescape") as file:
            mountinfo = file.read()
    kind = mounts.kind_of(existing, mountinfo)
    if mounts.is_shared(kind):
        raise BadInput("root", mounts.why_not(real, kind), mounts.REMEDY)
    flags = os.statvfs(existing).f_flag
    for flag, what in ((os.ST_NOEXEC, "noexec"), (os.ST_RDONLY, "read-only")):
        if flags & flag:
            cause = f"{real} lies on a file system that is mounted {what}"
            raise BadInput("root", cause, "Choose another root or mount it otherwise.")
    return real


def _check_directory(root: str, part: str, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise BadInput("root", f"{part} is no directory", "Choose another root.")
    if status.st_uid != 0:
        cause = f"{part} belongs to uid {status.st_uid}, who could replace what root uses"
        raise BadInput("root", cause, f"chown root {part}, or choose another root.")
    shared_above = part != root and status.st_mode & stat.S_ISVTX
    if status.st_mode & stat.S_IWOTH and not shared_above:
        raise BadInput("root", f"{part} is writable by everybody", f"chmod o-w {part}, or choose another root.")


def check_present(request: Request) -> None:
    """Check everything that a build rests on; raises BadInput. The planner has checked it before: this is the last fence."""
    spec = request.spec
    if digest(spec) != request.spec_digest:
        raise BadInput(
            "spec_digest",
            "it is not the sha256 of the canonical JSON of spec",
            "Hand over spec and spec_digest as the plan returned them.",
        )
    if not _RELEASE_ID.match(request.release_base) or not request.release_base.endswith("-" + request.spec_digest[:8]):
        cause = f"{request.release_base!r} does not end with the digest of the spec"
        raise BadInput("release_base", cause, "Hand it over as the plan returned it.")
    if spec.get("name") != request.layout.name:
        cause = f"it describes {spec.get('name')!r}, not {request.layout.name!r}"
        raise BadInput("spec", cause, "Hand it over as the plan returned it.")
    versions = {"torch": spec.get("torch"), **(spec.get("companions") or {})}
    for project, version in versions.items():
        if not _PROJECT.match(project) or not isinstance(version, str) or not _VERSION.match(version):
            raise BadInput("spec", f"{project} {version!r} is no version", "Write for example 2.9.1+cu128.")
    for requirement in spec.get("requirements") or []:
        if not isinstance(requirement, str) or not requirement.isprintable() or not _REQUIREMENT.match(requirement):
            raise BadInput(
                "spec",
                f"the requirement {requirement!r} is not a project name with extras, versions or a marker",
                "Options, URLs and paths are not possible: packages come from the package index.",
            )
    for option, url in (("index_url", request.index_url), ("package_index_url", request.package_index_url)):
        if (url or option == "index_url") and not re.match(r"(https?|file)://[^\s]+\Z", url):
            raise BadInput(
                option, "it is no http, https or file URL without blanks", "Give the URL of a package index."
            )
    for sm in request.sm:
        if not _SM.match(sm):
            raise BadInput("sm", f"{sm!r} is no architecture", "Write for example sm_120.")
    if not os.path.isabs(request.interpreter) or not os.access(request.interpreter, os.X_OK):
        raise BadInput(
            "interpreter",
            f"{request.interpreter!r} is no executable file",
            "Install this Python on the host, or ask for another one; then plan again.",
        )
    check_limits(request)


def check_lock(request: Request) -> None:
    """What a build installs: the lock has to be the one that the spec names, made for this spec; raises BadInput."""
    remedy = "Hand over the lock's text as the plan's lock_file holds it."
    if lock.digest(request.lock) != request.spec.get("lock"):
        raise BadInput("lock", "it is not the lock that the spec names by its sha256", remedy)
    try:
        parsed = lock.parse(request.lock)
    except lock.InvalidLock as error:
        raise BadInput("lock", str(error), remedy) from None
    if parsed.inputs != lock.inputs(request.spec):
        raise BadInput("lock", "it was made for another specification", remedy)


def check_limits(request: Request) -> None:
    """Check the numbers; raises BadInput."""
    if request.keep < 2:
        raise BadInput("keep", f"{request.keep} would leave no release to go back to", "Keep at least 2.")
    if request.time_limit <= 0 or request.proof_time_limit <= 0 or request.lock_timeout < 0:
        raise BadInput("time_limit", "a time limit is not positive", "Give seconds.")
    if not all(word and "\0" not in word for word in request.smoke):
        raise BadInput("smoke", "it has an empty word", "Give a program and its arguments.")


def is_foreign(names: t.Iterable[str]) -> bool:
    """Whether a directory in the root, by the names in it, is somebody else's and not an environment of ours, however unfinished."""
    entries = {name for name in names if not name.startswith(".")}
    ours = {"releases", "stamps", "bin", "current", "previous", "runtime.env", "takeaway"}
    return bool(entries - ours) and "stamps" not in entries


def hide_credentials(text: str) -> str:
    """Remove user names and passwords from the URLs in a text."""
    return re.sub(r"://[^/\s]*@", "://", text)
