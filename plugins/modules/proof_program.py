#!/usr/bin/python
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the program in place with which a host proves itself."""

from __future__ import annotations

DOCUMENTATION = r"""
module: proof_program
short_description: Install the program with which a host proves its own environments
version_added: 0.5.0
description:
  - Writes one file, a Python program without dependencies that holds the collection's own code for observing and proving. The role
    P(gpufleet.workstation.gpu_compliance#role) runs it from a timer.
  - It reads C(/etc/gpufleet/proof.json), proves what no stamp of M(gpufleet.workstation.cuda_verify) covers where the GPUs are idle,
    and writes metrics for node_exporter's textfile collector.
  - The same version of the collection always writes the same bytes. Delete the file to remove the program.
options:
  path:
    description:
      - Where the program is. Its folder has to exist.
    type: path
    default: /usr/local/libexec/gpufleet/proof
attributes:
  check_mode:
    description: Says whether the file would change.
    support: full
  diff_mode:
    description: The program is an archive; nothing of it is shown.
    support: none
  platform:
    description: Linux.
    support: full
    platforms: linux
author:
  - The gpufleet.workstation maintainers (@gpufleet)
"""

EXAMPLES = r"""
- name: Install the program of the host's timer
  gpufleet.workstation.proof_program:
  register: program
  become: true
"""

RETURN = r"""
path:
  description: Where the program is.
  type: str
  returned: success
  sample: /usr/local/libexec/gpufleet/proof
python:
  description: The interpreter that this module ran with, and that the program can be run with.
  type: str
  returned: success
  sample: /usr/bin/python3.11
"""

import contextlib
import os
import sys

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import timer
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import bundle

ENTRY = f"""
from {timer.__name__} import main
raise SystemExit(main())
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"path": {"type": "path", "default": "/usr/local/libexec/gpufleet/proof"}},
        supports_check_mode=True,
    )
    path, program = module.params["path"], bundle.packed(ENTRY)
    changed = False
    try:
        changed = not is_there(path, program)
        if changed and not module.check_mode:
            put(path, program)
    except OSError as error:
        module.fail_json(msg=f"proof_program: {path} was not written: {error}.")
    module.exit_json(changed=changed, path=path, python=sys.executable)


def is_there(path: str, program: bytes) -> bool:
    """Whether the file is the program, and nobody else's."""
    try:
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            return file.read() == program and (state.st_uid, state.st_mode & 0o7777) == (os.geteuid(), 0o644)
    except FileNotFoundError:
        return False


def put(path: str, program: bytes) -> None:
    """Replace the file in one step: the timer may start it at any time."""
    scratch = f"{path}.{os.getpid()}"
    try:
        with open(scratch, "wb") as file:
            file.write(program)
            os.fchmod(file.fileno(), 0o644)  # whatever the umask
            file.flush()
            os.fsync(file.fileno())
        os.rename(scratch, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise


if __name__ == "__main__":
    main()
