# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that are ill before the run begins, one for apt and one for dnf: they are mended, or what is wrong is named and the driver kept."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checks
import harness
import pytest
from checks import Seen
from harness import Host, Played

pytestmark = [pytest.mark.skipif(bool(harness.lacking()), reason=harness.lacking()), pytest.mark.timeout(1800)]

HOSTS = [name for name in ("drv-debian12-nvidia", "drv-rocky9-nvidia") if name in harness.driver_hosts()]
Outcome = tuple[Seen, Played, Seen]

each_host = pytest.mark.parametrize("name", HOSTS)


class Clinic:
    """Both hosts have 580; every scenario breaks them and runs once for both."""

    def __init__(self) -> None:
        harness.up(HOSTS)
        harness.play("remove.yml", HOSTS, gpufleet_remove=True)
        harness.play("provision_gpu.yml", HOSTS)
        self._outcomes: dict[str, dict[str, Outcome]] = {}

    def outcome(self, what: str, name: str, harm: Callable[[Host], Any], **variables: Any) -> Outcome:
        """Before; the run; after it, of one host."""
        if what not in self._outcomes:
            before = harness.look(HOSTS)
            for broken in harness.on_all(HOSTS, harm).values():
                if isinstance(broken, Exception):
                    raise broken
            run = harness.play("provision_gpu.yml", HOSTS, **variables)
            after = harness.look(HOSTS)
            self._outcomes[what] = {host: (before[host], run[host], after[host]) for host in HOSTS}
        return self._outcomes[what][name]


@pytest.fixture(scope="module")
def clinic() -> Iterator[Clinic]:
    yield Clinic()
    harness.play("remove.yml", HOSTS, gpufleet_remove=True)


def mended(name: str, outcome: Outcome, branch: str = "580") -> None:
    """The host is at its goal again."""
    before, played, after = outcome
    assert played.ready, played.message
    version = checks.serves(Host(name), after, branch, Host(name).flavor)
    assert branch != "580" or version == checks.version_of(before)


def interrupt_packages(host: Host) -> None:
    """dpkg: unpacked and not configured. rpm: the new version is in the database, the old one is not gone yet."""
    if host.rpm:
        url = f"http://{harness.server_address()}/nvidia/{host.persona['nvidia']}/x86_64/nvidia-persistenced-580.105.08-1.el9.x86_64.rpm"
        fetch = f"python3 -c \"import urllib.request as r; r.urlretrieve('{url}', '/tmp/older.rpm')\""
        host.run(
            f"{fetch}; rpm --install --justdb --nodeps --force --noscripts --notriggers /tmp/older.rpm; rm /tmp/older.rpm"
        )
    else:
        host.run(
            "cd /tmp && apt-get -qq download libcuda1=$(dpkg-query -W -f '${Version}' libcuda1)\n"
            "dpkg --unpack libcuda1_*.deb >/dev/null; rm libcuda1_*.deb; dpkg --audit | grep -q libcuda1"
        )


@each_host
def test_repair_of_an_interrupted_package_manager(clinic: Clinic, name: str) -> None:
    outcome = clinic.outcome("interrupted", name, interrupt_packages)
    assert "driver.repair" in outcome[1].planned
    mended(name, outcome)


def hold_lock(host: Host) -> None:
    """Somebody else works on packages for some seconds, and a hold of ours is gone."""
    lock = "/var/lib/rpm/.rpm.lock" if host.rpm else "/var/lib/dpkg/lock-frontend"
    program = f"import fcntl, time; f = open('{lock}', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); time.sleep(25)"
    loosen = "rm -f /etc/dnf/plugins/versionlock.list" if host.rpm else "apt-mark unhold libcuda1"
    host.run(f'{loosen}; systemd-run --quiet --collect python3 -c "{program}"')
    time.sleep(1.0)


@each_host
def test_repair_waits_for_a_package_lock_that_somebody_holds(clinic: Clinic, name: str) -> None:
    mended(name, clinic.outcome("locked", name, hold_lock))


def put_nouveau_into_initramfs(host: Host) -> None:
    """Images that were made without any block list, be it ours or that of a package; the lists came later."""
    rebuild = "dracut --force --regenerate-all" if host.rpm else "update-initramfs -u -k all"
    host.run(
        "lists=$(grep -ls '^blacklist nouveau' /etc/modprobe.d/*.conf /usr/lib/modprobe.d/*.conf)\n"
        f"for path in $lists; do mv $path $path.kept; done; {rebuild} >/dev/null 2>&1; sleep 1.1\n"
        "for path in $lists; do mv $path.kept $path; done"
    )


@each_host
def test_repair_of_nouveau_in_the_initramfs(clinic: Clinic, name: str) -> None:
    outcome = clinic.outcome("nouveau", name, put_nouveau_into_initramfs)
    assert outcome[1].planned == ["driver.nouveau"]
    mended(name, outcome)


def let_persistence_daemon_fail_once(host: Host) -> None:
    """As when it starts before the module is there."""
    host.run(
        "folder=/etc/systemd/system/nvidia-persistenced.service.d; mkdir -p $folder\n"
        "printf '[Service]\\nExecStartPre=/bin/sh -c \"test -e /run/late || { touch /run/late; exit 1; }\"\\n' > $folder/late.conf\n"
        "systemctl daemon-reload; systemctl disable --now nvidia-persistenced.service >/dev/null 2>&1"
    )


@each_host
def test_repair_of_a_persistence_daemon_that_fails_once(clinic: Clinic, name: str) -> None:
    outcome = clinic.outcome("persistence", name, let_persistence_daemon_fail_once)
    Host(name).run("rm -r /etc/systemd/system/nvidia-persistenced.service.d; systemctl daemon-reload")
    mended(name, outcome)


def load_another_version(host: Host) -> None:
    """The module that answers is not the one that is installed, as after an upgrade behind our back."""
    for path in ("sys-module/nvidia/version", "proc-driver/nvidia/version"):
        host.run(f"sed -i 's/580\\.178\\.04/580.105.08/' /var/lib/gpufleet-sandbox/{path}")


@each_host
def test_repair_of_a_loaded_module_of_another_version(clinic: Clinic, name: str) -> None:
    mended(name, clinic.outcome("mismatch", name, load_another_version))


def no_harm(_host: Host) -> None:
    """What is wrong is said in variables."""


@each_host
def test_mirror_that_is_down_is_named_and_nothing_changes(clinic: Clinic, name: str) -> None:
    url = f"http://{harness.server_address()}:9/nvidia/"
    before, played, after = clinic.outcome(
        "mirror", name, no_harm, nvidia_driver_branch="595", nvidia_driver_repository_url=url
    )
    assert not played.ready
    assert f"{harness.server_address()}:9" in played.message
    checks.same_driver(before, after)


@pytest.fixture(scope="module")
def expired() -> Iterator[tuple[str, str]]:
    """The address of a repository whose key expired long ago, and the key."""
    served = Path("/var/cache/gpufleet/www")
    source = served / "nvidia" / harness.PERSONAS[HOSTS[0]]["nvidia"] / "x86_64"
    with (
        tempfile.TemporaryDirectory(prefix="gpufleet-expired-", dir=served) as folder,
        tempfile.TemporaryDirectory(prefix="gpufleet-expired-") as home,
    ):
        new = Path(folder)
        new.chmod(0o755)
        for name in ("Packages", "Packages.gz", "Release"):
            (new / name).write_bytes((source / name).read_bytes())
        gpg = ["gpg", "--homedir", home, "--batch", "--faked-system-time", "20250101T000000!"]
        gpg += ["--pinentry-mode", "loopback", "--passphrase", ""]
        user = "expired (SIMULATED) <expired@gpufleet.test>"
        for words in (
            ["--quick-generate-key", user, "rsa3072", "sign", "1d"],
            [
                "--yes",
                "--digest-algo",
                "SHA512",
                "--clearsign",
                "--output",
                str(new / "InRelease"),
                str(new / "Release"),
            ],
        ):
            subprocess.run([*gpg, *words], check=True, capture_output=True)
        key = Path(home) / "key.asc"
        key.write_bytes(subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True).stdout)
        yield f"http://{harness.server_address()}/{new.name}/", str(key)


def test_key_that_expired_is_named_and_nothing_changes(clinic: Clinic, expired: tuple[str, str]) -> None:
    """For apt; what dnf and rpm say of such a key is among the recorded words of tests/unit."""
    host = Host(HOSTS[0])
    before = host.look()
    url, key = expired
    run = harness.play(
        "provision_gpu.yml",
        [host.name],
        nvidia_driver_branch="595",
        nvidia_driver_repository_url=url,
        nvidia_driver_repository_key=key,
    )
    assert not run[host.name].ready
    assert "expired" in run[host.name].message.lower()
    after = host.look()
    checks.same_driver(before, after)
    sources = {path: value for path, value in before["files"].items() if path.startswith("/etc/apt/")}
    assert {path: value for path, value in after["files"].items() if path.startswith("/etc/apt/")} == sources


def add_dead_source(host: Host) -> None:
    """Somebody else's repository that does not answer."""
    if host.rpm:
        text = "[dead]\\nname=dead\\nbaseurl=http://127.0.0.1:9/\\nenabled=1\\ngpgcheck=0\\n"
        host.run(f"printf '{text}' > /etc/yum.repos.d/dead.repo")
    else:
        host.run("echo 'deb [trusted=yes] http://127.0.0.1:9/ stable main' > /etc/apt/sources.list.d/dead.list")


@each_host
def test_source_of_somebody_else_that_is_dead_does_not_keep_ours_from_working(clinic: Clinic, name: str) -> None:
    outcome = clinic.outcome("dead source", name, add_dead_source, nvidia_driver_branch="595")
    Host(name).run("rm -f /etc/apt/sources.list.d/dead.list /etc/yum.repos.d/dead.repo")
    mended(name, outcome, "595")
