# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sandbox's own certificate authority: nothing trusts it but who is told to."""

from __future__ import annotations

from pathlib import Path

from .settings import Settings
from .shell import fresh_folder, locked, run

NAME = "index.gpufleet.test"
"""The server's name in its certificate; only its network's name service knows it."""


def authority(settings: Settings) -> Path:
    """The authority's certificate."""
    return settings.cache / "authority/ca.pem"


def certificate(settings: Settings) -> Path:
    """Key and certificate of the server, in one file; made once per machine."""
    made = settings.cache / "authority/server.pem"
    with locked(settings.cache / "authority.lock"):
        if not made.exists():
            folder = fresh_folder(made.parent)
            folder.chmod(0o700)
            key, ca_key, new = folder / "server.key", folder / "ca.key", folder / "server.crt"
            make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650")
            subject = ("-subj", "/CN=The gpufleet sandbox (test authority)")
            usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
            run(*make, "-keyout", ca_key, "-out", authority(settings), *subject, *usage)
            signed = ("-CA", authority(settings), "-CAkey", ca_key, "-addext", f"subjectAltName=DNS:{NAME}")
            plain = ("-addext", "basicConstraints=critical,CA:FALSE")
            run(*make, "-keyout", key, "-out", new, "-subj", f"/CN={NAME}", *signed, *plain)
            made.write_text(key.read_text() + new.read_text())
    return made
