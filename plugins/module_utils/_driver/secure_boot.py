# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The machine owner key, with which DKMS signs modules for Secure Boot.

A key can only be staged from here: it counts after a person confirmed it at the console, during the next boot. What mokutil says
about it is quoted, never guessed.
"""

from __future__ import annotations

import os
import re
import tempfile
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host

from .commands import NOT_THERE, Run
from .model import DriverError

_LIMIT = 60.0
_GENERATE_LIMIT = 300.0  # a machine without entropy takes its time
_CONSOLE = (
    "Reboot the host with somebody at its console: in the blue screen that comes up choose Enroll MOK, Continue, Yes, and type the"
    " password. Then run again."
)


@dataclass(frozen=True)
class Key:
    """Files of the key that DKMS signs with."""

    private: str
    certificate: str


@dataclass(frozen=True)
class Staged:
    """What became of a key. ``state`` is `enrolled` or `pending`; pending waits for the console."""

    key: Key
    state: str
    changed: bool
    text: str


def signing_key(host: Host) -> Key:
    """Return the files of DKMS's key: those that its configuration names, else those of the distribution."""
    release = host.text("/etc/os-release") or ""
    ubuntu = re.search(r"^ID=\"?ubuntu", release, re.MULTILINE) is not None
    chosen = {
        "mok_signing_key": "/var/lib/shim-signed/mok/MOK.priv" if ubuntu else "/var/lib/dkms/mok.key",
        "mok_certificate": "/var/lib/shim-signed/mok/MOK.der" if ubuntu else "/var/lib/dkms/mok.pub",
    }
    folder = "/etc/dkms/framework.conf.d"
    files = ["/etc/dkms/framework.conf", *(f"{folder}/{name}" for name in host.names(folder) if name.endswith(".conf"))]
    for path in files:
        found = re.findall(
            r"^\s*(mok_signing_key|mok_certificate)=[\"']?([^\"'\s#]+)", host.text(path) or "", re.MULTILINE
        )
        chosen.update(found)
    return Key(chosen["mok_signing_key"], chosen["mok_certificate"])


def state(run: Run, certificate: str) -> tuple[str, str]:
    """Return `enrolled`, `pending`, `absent` or `unknown` for a certificate, and mokutil's own words."""
    done = run(["mokutil", "--test-key", certificate], _LIMIT)
    words = done.last_words
    if "blocked" in words or done.status == NOT_THERE:
        return "unknown", words
    if "enrollment request" in words:
        return "pending", words
    if "is not enrolled" in words:
        return "absent", words
    if re.search(r"already (?:enrolled|in )|trusted keyring", words, re.IGNORECASE):
        return "enrolled", words
    return "unknown", words


def stage(host: Host, run: Run, password: str) -> Staged:
    """Ask the firmware to enroll DKMS's key at the next boot, where that is not done already; make the key where there is none."""
    key = signing_key(host)
    made = _make(host, run, key)
    now, words = state(run, key.certificate)
    if now == "enrolled":
        return Staged(key, now, made, f"{key.certificate} is enrolled (mokutil: {words}).")
    if now == "pending":
        return Staged(key, now, made, f"{key.certificate} waits to be confirmed (mokutil: {words}). {_CONSOLE}")
    if now == "unknown":
        raise DriverError(
            f"{key.certificate} cannot be staged: mokutil says: {words}. Install mokutil, or switch Secure Boot off in the firmware, then"
            " run again. The driver that serves is kept."
        )
    if not password:
        raise DriverError(
            f"Secure Boot is on and the key that signs the driver's modules ({key.certificate}) is not enrolled. Set"
            f" nvidia_driver_mok_password (it is typed once, at the console), or run `mokutil --import {key.certificate}` on the host"
            " yourself. The driver that serves is kept."
        )
    _import(run, key, password)
    now, words = state(run, key.certificate)
    if now != "pending":
        raise DriverError(
            f"{key.certificate} was handed to mokutil, but is not staged; mokutil says: {words}. The driver that serves is kept."
        )
    return Staged(key, now, True, f"{key.certificate} is staged (mokutil: {words}). {_CONSOLE}")


def _make(host: Host, run: Run, key: Key) -> bool:
    """Make DKMS's key where it is missing, the way the host's own tools do; whether anything was made."""

    def there() -> bool:
        return host.exists(key.certificate) and (key.private.startswith("pkcs11:") or host.exists(key.private))

    if there():
        return False
    ways: list[tuple[t.Sequence[str], t.Mapping[str, str]]] = []
    if key.private.startswith("/var/lib/shim-signed/"):
        ways.append(
            (["update-secureboot-policy", "--new-key"], {"SHIM_NOTRIGGER": "y", "DEBIAN_FRONTEND": "noninteractive"})
        )
    ways.append((["dkms", "generate_mok"], {}))  # since 3.0.11
    subject = ["-subj", "/CN=DKMS module signing key", "-addext", "extendedKeyUsage=codeSigning"]
    files = ["-keyout", key.private, "-outform", "DER", "-out", key.certificate]
    ways.append(
        (["openssl", "req", "-new", "-x509", "-nodes", "-days", "36500", *subject, "-newkey", "rsa:2048", *files], {})
    )
    os.makedirs(host.root + os.path.dirname(key.certificate), exist_ok=True)
    words = ""
    for argv, environment in ways:
        words = run(argv, _GENERATE_LIMIT, environment).last_words
        if there():
            return True
    raise DriverError(f"There is no key to sign the driver's modules with, and {key.private} cannot be made: {words}.")


def _import(run: Run, key: Key, password: str) -> None:
    """Stage the key under a password. mokutil gets it on its standard input and as a hash: no list of processes shows it."""
    done = run(["mokutil", "--generate-hash"], _LIMIT, None, f"{password}\n{password}\n")
    # mokutil prints its questions on standard output, before the hash.
    match = re.search(r"^\$\S+$", done.output, re.MULTILINE)
    if done.status != 0 or match is None:
        raise DriverError(
            f"{key.certificate} cannot be staged: mokutil refuses nvidia_driver_mok_password: {done.last_words}."
        )
    with tempfile.NamedTemporaryFile("w", prefix="gpufleet-mok-", encoding="ascii") as file:
        file.write(match.group())
        file.flush()
        done = run(["mokutil", "--import", key.certificate, "--hash-file", file.name], _LIMIT)
    if done.status != 0:
        raise DriverError(
            f"{key.certificate} cannot be staged: mokutil says: {done.last_words}. The driver that serves is kept."
        )
