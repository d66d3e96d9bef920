# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: bring one environment to the release that is asked for, in one go on the host.

build -> compare with RECORD -> compile -> seal -> prove -> stamp -> smoke -> switch -> prune. Whatever fails, what served before serves on.
A release that is stamped and may not become current yet is *staged*: the next run takes up from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import hashlib
import os
import pwd
import signal
import time
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import (
    build,
    contents,
    gate,
    lock,
    manifest,
    startup,
    store,
    takeaway,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import (
    SCHEMA,
    BadInput,
    Layout,
    ReleaseError,
    Request,
    check_limits,
    check_lock,
    check_present,
    digest,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.processes import (
    Account,
    User,
    end,
    users_of,
)

Proof = dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Host:
    """What this needs from outside: the build account, uv, the proof, the clock, how account and proof are forgotten, and overlays."""

    account: t.Callable[[], Account]
    uv: t.Callable[[], t.Optional[str]]  # None: it is not on this host and was not handed over
    prove: t.Callable[[str, dict[str, t.Any], str, float], Proof]
    now: t.Callable[[], str]
    forget_account: t.Callable[[], t.Optional[str]] = lambda: None  # says what stood in the way
    forget_proof: t.Callable[[str], object] = lambda _name: None  # deletes the stamp of the environment's last proof
    # The releases below a root that overlays see, each with the overlays' paths; None: that cannot be said, and why is told.
    pinned: t.Callable[[str, t.Callable[[str], object]], t.Optional[dict[str, list[str]]]] = lambda _root, _say: {}
    # Hears of every step that begins, with those that ended.
    tell: t.Callable[[str, list[dict[str, t.Any]]], object] = lambda _step, _steps: None
    # Where it is there, nothing is built here: it has another process do it (jobs.py), and says what the result calls ``job``.
    hand_over: t.Optional[t.Callable[[str, store.State], object]] = None


@dataclasses.dataclass(frozen=True)
class Decision:
    """What has to be done: ``keep``, ``prove`` (the current one again), ``switch`` (to one that is there) or ``build``."""

    kind: str
    release_id: str
    reason: str
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)
    """Releases of the same specification that cannot serve because they are damaged, and how."""


def decide(state: store.State, request: Request, layout: Layout) -> Decision:
    """What to do so that a proven, undamaged release of this spec is current. Reads the disk, changes nothing."""
    reason = "no release of this specification is there"
    same = [
        name for name, stamp in reversed(list(state.stamped.items())) if stamp.get("spec_digest") == request.spec_digest
    ]
    same.sort(key=lambda name: name != state.current)  # the current one first, then the newest
    damaged = {}
    for release_id in same:
        stamp = state.stamped[release_id]
        wrong = store.unusable(layout, release_id, stamp, request.integrity == "hashes")
        if wrong is not None:
            reason = f"{release_id} cannot serve: {wrong.text}"
            if wrong.lasting:
                damaged[release_id] = wrong.text
        elif release_id != state.current:
            return Decision("switch", release_id, "it was built and proven before", damaged)
        elif stamp.get("owner") != request.owner or stamp.get("group") != request.group:
            return Decision("prove", release_id, "its owner or group changes")
        elif not set(request.sm) <= set(stamp["proof"].get("sm") or []):
            return Decision("prove", release_id, f"it was not proven for {', '.join(request.sm)}")
        else:
            return Decision("keep", release_id, "it serves already")
    return Decision("build", store.next_id(state, layout, request.release_base), reason, damaged)


class Operation:
    """One change of one environment, with a record of its steps."""

    def __init__(self, request: Request, host: Host, check_mode: bool = False) -> None:
        self.request = request
        self.layout = request.layout
        self.host = host
        self.check_mode = check_mode
        self.steps: list[dict[str, t.Any]] = []
        self.proof: Proof | None = None
        self.pending: dict[str, str] | None = None
        self.removed: list[str] = []
        self.warnings: list[str] = []
        self.before: store.State = store.State({}, None, None)
        self.after: store.State = self.before
        self.changes: list[str] = []
        self.what = ""

    @contextlib.contextmanager
    def step(self, name: str) -> t.Iterator[None]:
        """Time a step, and tell what the operating system refuses as this step's failure."""
        begin = time.monotonic()
        self.host.tell(name, self.steps)
        try:
            yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise ReleaseError(
                name, f"{error.strerror or error}{where}", "Check the disk and the permissions, then run again."
            ) from error
        finally:
            self.steps.append({"step": name, "seconds": round(time.monotonic() - begin, 3)})

    def present(self) -> dict[str, t.Any]:
        """Make the asked release current."""
        request = self.request
        check_present(request)
        if request.lock:
            check_lock(request)
        gid = self._check_people(request.owner, request.group)
        with self._changing():
            decision = decide(self.before, request, self.layout)
            self.what = f"{decision.kind} {decision.release_id}: {decision.reason}"
            outdated = store.outdated_files(self._launchers())
            if decision.kind == "keep" and not outdated and self._home_is_right(gid):
                return self._clean_up()
            if self.check_mode:
                self._predict(decision.release_id, outdated)
                return self._result(changed=True)
            if decision.kind == "build":
                check_lock(request)
            uv = self.host.uv() if decision.kind == "build" else ""
            if uv is None:
                return {**self._result(changed=False), "uv_needed": True}
            if decision.kind == "build" and self.host.hand_over is not None:
                with self.step("hand over"):
                    job = self.host.hand_over(decision.release_id, self.before)
                return {**self._result(changed=False), "job": job}
            self._make_directories(gid)
            for release_id, damage in decision.damaged.items():
                store.condemn(self.layout, self.before.stamped[release_id], damage)
            if decision.kind == "build":
                self._build(decision.release_id, uv, gid)
            elif decision.kind != "keep":
                stamp = self.before.stamped[decision.release_id]
                # What serves serves on while it is proven for somebody else or for other GPUs.
                level = request.switch_after if decision.kind == "switch" else "static"
                self._prove(decision.release_id, request.expect, request.owner, level)
                if self.pending is None:
                    people = {"owner": request.owner, "group": request.group}
                    self._stamp({**stamp, **people, "proof": self._proof_for_stamp()})
            if self.pending is not None:
                self._stage(decision.release_id)
                return self._result(changed=decision.kind == "build" or bool(self.removed))
            if decision.kind in ("build", "switch"):
                self._smoke(decision.release_id, request.owner)
            self._finish(decision.release_id, outdated)
            return self._result(changed=True)

    def previous(self) -> dict[str, t.Any]:
        """Go back to the previous release, or to a named one, once it is proven against the host as it is today."""
        check_limits(self.request)
        remedy = "Ask for the version that you want instead (torch_env_version)."
        if not os.path.isdir(self.layout.home):
            raise BadInput("name", f"there is no environment {self.layout.home}", remedy)
        with self._changing():
            target = self.request.release or self.before.previous
            if target and target == self.request.release == self.before.current:
                self.what = f"keep {target}: it serves already"
                return self._result(changed=False)
            there = f"on this host are: {', '.join(self.before.stamped) or 'none'}"
            if target is None or target == self.before.current:
                raise ReleaseError("roll back", f"there is no previous release; {there}", remedy)
            if target not in self.before.releases:
                raise ReleaseError("roll back", f"there is no release {target}; {there}", remedy)
            stamp = self.before.stamped.get(target)
            if stamp is None:
                raise ReleaseError("roll back", f"{target} has no stamp, so it was never proven", remedy)
            wrong = store.unusable(self.layout, target, stamp, self.request.integrity == "hashes")
            if wrong is not None:
                raise ReleaseError("roll back", f"{target} cannot serve: {wrong.text}", remedy)
            self.what = f"switch {target}: roll back"
            if self.check_mode:
                self._predict(target, [])
                return self._result(changed=True)
            owner = str(stamp.get("owner") or "root")
            self._check_people(owner, str(stamp.get("group") or "root"))
            expect = {"torch": stamp["spec"].get("torch"), "companions": stamp["spec"].get("companions") or {}}
            self._prove(target, expect, owner, self.request.switch_after)
            if self.pending is not None:
                raise ReleaseError(
                    "roll back",
                    f"{target} has to pass the proof at level quick first, which cannot be made now: {self.pending['why']}",
                    f"{self.pending['remedy']} Or let the static proof decide (torch_env_switch_after: static).",
                )
            self._stamp({**stamp, "proof": self._proof_for_stamp()})
            self._smoke(target, owner)
            with self.step("switch"):
                store.remove_tree(self.layout.takeaway)  # it describes what serves until now
                self.after = store.switch(self.layout, self.before, target)
            return self._result(changed=True)

    def absent(self) -> dict[str, t.Any]:
        """Remove the environment, and with the last one what all of them shared."""
        if not os.path.lexists(self.layout.home):
            return self._result(changed=False)
        with self._changing():
            self.what = f"remove {self.layout.home}"
            self.after = store.State({}, None, None)
            if self.check_mode:
                return self._result(changed=True)
            with self.step("look for users"):
                users = users_of([self.layout.home])
                pinned = self.host.pinned(self.layout.root, self.warnings.append)
            self._refuse_in_use(users)
            self._refuse_pinned(pinned)
            with self.step("remove"):
                self.host.forget_proof(self.layout.name)
                for which in ("current", "previous"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.layout.link(which))
                for release_id in self.before.releases:
                    store.remove_release(self.layout, release_id)
                    self.removed.append(store.id_of(release_id))
                store.remove_tree(self.layout.home)
                store.remove_tree(self.layout.job)
                if not [name for name in os.listdir(self.layout.root) if not name.startswith(".")]:
                    self._remove_shared()
            return self._result(changed=True)

    def _refuse_in_use(self, users: dict[str, list[User]] | None) -> None:
        if users is None:
            raise ReleaseError(
                "look for users", "it cannot be said who uses the environment", "Look for hung processes (state D)."
            )
        busy = users[self.layout.home]
        if busy:
            named = ", ".join(f"{user.pid} ({user.command})" for user in busy[:5])
            raise ReleaseError(
                "look for users", f"{len(busy)} processes use the environment: {named}", "End them, then run again."
            )

    def _refuse_pinned(self, pinned: dict[str, list[str]] | None) -> None:
        if pinned is None:
            cause = "it cannot be said which overlays (gpu-env new) see the environment"
            raise ReleaseError("look for users", cause, "Look at what is below its root, then run again.")
        inside = os.path.realpath(self.layout.releases) + os.sep
        overlays = sorted({path for release, paths in pinned.items() if release.startswith(inside) for path in paths})
        if overlays:
            more = f" and {len(overlays) - 5} more" if len(overlays) > 5 else ""
            cause = f"{len(overlays)} overlays use the environment: {', '.join(overlays[:5])}{more}"
            raise ReleaseError(
                "look for users", cause, "Have their owners remove them (gpu-env remove), then run again."
            )

    def _remove_shared(self) -> None:
        _mode, text = startup.command_file(self.layout.root)
        with contextlib.suppress(FileNotFoundError), open(self.request.launcher, "rb") as file:
            if file.read() == text.encode("utf-8"):
                os.unlink(self.request.launcher)
        store.remove_tree(self.layout.cache)
        store.remove_tree(self.layout.tools)
        with contextlib.suppress(OSError):  # not there, or another run's
            os.rmdir(os.path.dirname(self.layout.job))
        problem = self.host.forget_account()
        if problem is not None:
            self.warnings.append(f"the build account is still there: {problem}")
        os.unlink(self.layout.lock)
        with contextlib.suppress(OSError):  # somebody else's files may lie there
            os.rmdir(self.layout.root)
            parent = os.path.dirname(self.layout.root)
            if os.path.basename(parent) == "gpufleet":  # as in the default root, where the first build made it
                os.rmdir(parent)

    @contextlib.contextmanager
    def _changing(self) -> t.Iterator[None]:
        """Hold the lock and know the state; in check mode only know the state."""
        with contextlib.ExitStack() as stack:
            if not self.check_mode:
                with self.step("lock"):
                    stack.enter_context(store.locked(self.layout, self.request.lock_timeout))
                stack.enter_context(interruptible())
            with self.step("read"):
                self.before = self.after = store.read_state(self.layout)
            yield

    def _check_people(self, owner: str, group: str) -> int:
        """Return the gid of the group; raises BadInput where owner or group cannot serve."""
        try:
            account = pwd.getpwnam(owner)
        except KeyError:
            raise BadInput(
                "owner", f"this host has no account {owner!r}", "Create it, or name another one (torch_env_owner)."
            ) from None
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise BadInput(
                "group", f"this host has no group {group!r}", "Create it, or name another one (torch_env_group)."
            ) from None
        if group != "root" and (owner == "root" or gid not in os.getgrouplist(owner, account.pw_gid)):
            raise BadInput(
                "owner",
                f"only members of the group {group!r} may read the environment, and {owner!r} cannot be the one who proves it",
                f"Name a member of {group!r} as the owner.",
            )
        return gid

    def _launchers(self) -> dict[str, tuple[int, str]]:
        files = startup.environment_files(self.layout.root, self.layout.name)
        if self.request.launcher:
            files[self.request.launcher] = startup.command_file(self.layout.root)
        if self.request.lock:
            files.update(takeaway.managed(self._environment(), lock.parse(self.request.lock)))
        return files

    def _environment(self) -> dict[str, t.Any]:
        """What the plan says of the environment, as far as the files that users take away depend on it."""
        of_the_plan = ("spec", "index_url", "package_index_url", "variables")
        return {
            "name": self.layout.name,
            "root": self.layout.root,
            **{key: getattr(self.request, key) for key in of_the_plan},
        }

    def _home_mode(self, gid: int) -> tuple[int, int]:
        return gid, 0o750 if gid else 0o755

    def _home_is_right(self, gid: int) -> bool:
        status = os.stat(self.layout.home)
        return (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, *self._home_mode(gid))

    def _make_directories(self, gid: int) -> None:
        with self.step("prepare"):
            for directory in (self.layout.home, self.layout.releases, self.layout.stamps):
                os.makedirs(directory, mode=0o755, exist_ok=True)
            group, mode = self._home_mode(gid)
            os.chown(self.layout.home, 0, group)
            os.chmod(self.layout.home, mode)

    def _build(self, release_id: str, uv: str, gid: int) -> None:
        with self.step("prepare"):
            account = self.host.account()
            self._remove_leftovers(account)
            need_mib, need_inodes = build.estimate(self.before.stamped.values(), self.request.spec)
            build.check_room(self.layout.root, self.request.disk_required_mib or need_mib, need_inodes)
        builder = build.Builder(self.request, release_id, uv, account, groups=[gid] if gid else [])
        try:
            try:
                self._install(builder)
            except build.PoisonedCache as error:
                self.warnings.append(f"uv's cache was damaged and has been dropped: {error.cause}")
                builder.discard()
                build.drop_cache(self.layout)
                self._install(builder)
            with self.step("compile"):
                builder.add_startup_files()
                builder.compile()
            with self.step("seal"):
                builder.seal()
            with self.step("manifest"):
                tree = manifest.scan(self.layout.release(release_id))
                text = manifest.encode(manifest.render(tree))
                hashes = manifest.encode(contents.render(self.layout.release(release_id), tree))
            with self.step("sync"):
                syncing = store.start_sync(self.layout.root)
            self._prove(release_id, self.request.expect, self.request.owner, self.request.switch_after)
            with self.step("sync"):
                store.finish_sync(syncing, self.request.time_limit)
            with self.step("stamp"):
                store.write_file(self.layout.manifest(release_id), text)
                store.write_file(self.layout.hashes(release_id), hashes)
                store.write_stamp(self.layout, self._new_stamp(release_id, tree, text, hashes))
        except BaseException:
            builder.discard()
            for path in (self.layout.manifest(release_id), self.layout.hashes(release_id)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            raise

    def _install(self, builder: build.Builder) -> None:
        with self.step("venv"):
            builder.prepare()
            builder.venv()
        with self.step("install"):
            builder.install()
        with self.step("record"):
            builder.check_record()

    def _remove_leftovers(self, account: Account) -> None:
        """Remove what an interrupted run left; end its processes, which nobody waits for any more."""
        left = [name for name, stamp in self.before.releases.items() if stamp is None]
        left = [name for name in left if name not in (self.before.current, self.before.previous)]
        directories = [self.layout.release(name) for name in left] + [self.layout.cache]
        for busy in (users_of(directories) or {}).values():
            end(busy, account.uid)
        self._remove_unused(left)
        for directory in (self.layout.home, self.layout.stamps):
            for name in os.listdir(directory):
                if name.startswith("."):
                    os.unlink(os.path.join(directory, name))

    def _clean_up(self) -> dict[str, t.Any]:
        """Remove what interrupted removals left beside the release that serves well; in check mode see what that would be."""
        left = self.before.leftovers
        if left:
            self.what += f"; remove what is left of {', '.join(map(store.id_of, left))}"
            with self.step("prune"):
                self._remove_unused(left)
            self.changes = [f"removed: what was left of {release_id}" for release_id in self.removed]
        return self._result(changed=bool(self.removed))

    def _remove_unused(self, names: list[str]) -> None:
        directories = [self.layout.release(name) for name in names]
        users = users_of(directories)
        pinned = self.host.pinned(self.layout.root, self.warnings.append) if directories else {}
        for name, directory in zip(names, directories):
            release_id = store.id_of(name)
            overlays = (pinned or {}).get(os.path.realpath(self.layout.release(release_id)))
            if overlays:
                self.warnings.append(f"{release_id} is kept, because overlays see it: {', '.join(overlays[:5])}")
            elif pinned is None:
                self.warnings.append(f"{release_id} is kept, because it cannot be said which overlays see it")
            elif users is None or users[directory]:
                self.warnings.append(f"{release_id} is kept, because a process may still use it")
            else:
                if not self.check_mode:
                    store.remove_release(self.layout, name)
                self.removed.append(release_id)

    def _prove(self, release_id: str, expect: dict[str, t.Any], owner: str, level: str) -> None:
        """Prove a release, or say in ``pending`` why its quick proof has to wait; raises ReleaseError where it does not prove."""
        with self.step("prove"):
            user = owner if owner != "root" else self.host.account().name
            gpus = list(self.request.gpus) or None
            request = {"level": level, "expect": expect, "sm": list(self.request.sm), "gpus": gpus}
            self.proof = self.host.prove(self.layout.python(release_id), request, user, self.request.proof_time_limit)
            if self.proof.get("verdict") == "passed":
                return
            wait = gate.waits_for(self.proof) if level != "static" else None
            if wait is None:
                raise _not_proven(release_id, self.proof)
            what = f"switch the environment {self.layout.name} to {release_id}"
            self.pending = {"what": what, "why": wait["reason"], "remedy": wait["remedy"]}

    def _smoke(self, release_id: str, owner: str) -> None:
        if not self.request.smoke:
            return
        with self.step("smoke"):
            account = Account.of(owner) if owner != "root" else self.host.account()
            try:
                gate.run_smoke(self.request, release_id, account)
            except ReleaseError:
                self._stage(release_id)
                raise

    def _stage(self, release_id: str) -> None:
        """Keep a release for a later switch, but not one from every try."""
        with self.step("prune"):
            state = store.read_state(self.layout)
            self._remove_unused(store.prunable(state, self.request.keep, staged=release_id))
        self.after = store.read_state(self.layout)

    def _proof_for_stamp(self) -> dict[str, t.Any]:
        proof = self.proof or {}
        passed = [check for check in proof.get("checks") or [] if check.get("status") == "passed"]
        checks = [{key: check.get(key) for key in ("id", "status", "evidence")} for check in passed]
        level = proof.get("proven") or "static"
        return {"level": level, "verdict": "passed", "checks": checks, "sm": list(self.request.sm)}

    def _new_stamp(self, release_id: str, tree: dict[str, str], text: bytes, hashes: bytes) -> dict[str, t.Any]:
        proof = self.proof or {}
        files, size = manifest.totals(tree)
        return {
            "schema": SCHEMA,
            "id": release_id,
            "spec": self.request.spec,
            "spec_digest": digest(self.request.spec),
            "serial": store.next_serial(self.before),
            "built_at": self.host.now(),
            "python": _python_version(self.layout.release(release_id)),
            "torch": proof.get("torch"),
            "companions": proof.get("companions"),
            "proof": self._proof_for_stamp(),
            "files": files,
            "bytes": size,
            "manifest_sha256": hashlib.sha256(text).hexdigest(),
            "hashes_sha256": hashlib.sha256(hashes).hexdigest(),
            "owner": self.request.owner,
            "group": self.request.group,
        }

    def _stamp(self, stamp: dict[str, t.Any]) -> None:
        with self.step("stamp"):
            store.write_stamp(self.layout, stamp)

    def _finish(self, release_id: str, outdated: list[str]) -> None:
        with self.step("launchers"):
            store.write_files(self._launchers(), outdated)
            self.changes = _written(outdated)
        with self.step("switch"):
            state = store.switch(self.layout, store.read_state(self.layout), release_id)
        with self.step("prune"):
            self._remove_unused(store.prunable(state, self.request.keep))
        self.after = store.read_state(self.layout)

    def _predict(self, release_id: str, outdated: list[str]) -> None:
        self.changes = _written(outdated)
        releases = dict(self.before.releases)
        releases.setdefault(release_id, None)
        previous = self.before.current if self.before.current not in (None, release_id) else self.before.previous
        self.after = store.State(releases, release_id, previous)

    def _result(self, changed: bool) -> dict[str, t.Any]:
        current = self.after.current
        return {
            "changed": changed,
            "what": self.what,
            "release": current,
            "previous": self.after.previous,
            "path": self.layout.release(current) if current else None,
            "steps": self.steps,
            "proof": self.proof,
            "pending": self.pending,
            "removed": self.removed,
            "warnings": self.warnings,
            "diff": {
                "before_header": f"{self.layout.home} (now)",
                "after_header": f"{self.layout.home} ({self.what})",
                "before": _describe(self.before, []),
                "after": _describe(self.after, self.changes),
            },
        }


def _describe(state: store.State, changes: list[str]) -> str:
    lines = [f"current: {state.current or '-'}", f"previous: {state.previous or '-'}", *changes]
    return "\n".join(lines) + "\n"


def _written(paths: list[str]) -> list[str]:
    return [f"written: {path}" for path in paths]


def _not_proven(release_id: str, proof: Proof) -> ReleaseError:
    parts = [("", proof), *((f" on {gpu.get('pci_address')}", gpu) for gpu in proof.get("gpus") or [])]
    found = [(where, check) for where, part in parts for check in part.get("checks") or []]
    if any(check.get("status") == "failed" for _where, check in found):  # then what did not run only follows from it
        found = [(where, check) for where, check in found if check.get("status") == "failed"]
    found = [(where, check) for where, check in found if check.get("status") != "passed"]
    cause = "; ".join(f"{check.get('id')}{where}: {check.get('evidence')}" for where, check in found) or str(
        proof.get("reason") or "no reason given"
    )
    bad = [check for _where, check in found]
    remedies = [str(check["remedy"]) for check in bad if check.get("remedy")]
    return ReleaseError(
        "prove the release",
        f"{release_id} is not proven ({proof.get('verdict')}): {cause}",
        " ".join(dict.fromkeys(remedies)) or "Choose a build that fits the GPUs of this host.",
        proof=proof,
    )


def _python_version(release: str) -> str | None:
    with open(os.path.join(release, "pyvenv.cfg"), encoding="utf-8") as file:
        for line in file:
            key, _equals, value = line.partition("=")
            if key.strip() in ("version_info", "version"):
                return value.strip()
    return None


@contextlib.contextmanager
def interruptible() -> t.Iterator[None]:
    """Turn the signals that end a run into a failure of the step, so that it cleans up."""

    def interrupt(number: int, _frame: t.Any) -> None:
        raise ReleaseError("run", f"it was ended by {signal.Signals(number).name}", "Run again.")

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
