# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection to hosts that do not exist: SIMULATED, for bench/compliance.py alone."""

from __future__ import annotations

DOCUMENTATION = r"""
name: canned
short_description: Answer modules from files, without any host
description:
  - Plays hosts whose modules answer at once, so that only the controller's own time is measured.
options:
  answers:
    description: Folder with C(gpu_info.json), what that module prints; every other module answers as ping does.
    type: path
    required: true
    env: [{name: GPUFLEET_CANNED_ANSWERS}]
"""

import os

from ansible.plugins.connection import ConnectionBase


class Connection(ConnectionBase):
    """Answers what is sent to it with what lies in a folder."""

    transport = "canned"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Answer a module, which comes as its whole text."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        if in_data is None:
            raise RuntimeError(f"the simulated hosts answer modules only, not: {cmd}")
        name = "gpu_info" if b"gpu_info" in in_data else "ping"
        with open(os.path.join(self.get_option("answers"), f"{name}.json"), "rb") as answer:
            return 0, answer.read(), b""

    def put_file(self, in_path: str, out_path: str) -> None:
        """Refuse: nothing is copied to hosts that do not exist."""
        raise RuntimeError(f"the simulated hosts take no files: {in_path} -> {out_path}")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Refuse as well."""
        raise RuntimeError(f"the simulated hosts have no files: {in_path}")

    def close(self) -> None:
        """There is nothing to close."""
        self._connected = False
