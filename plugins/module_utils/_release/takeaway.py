# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: an environment as files for other tools, from the same lock that the hosts obey. Pure.

pip knows no index for a single package: one file with two indexes would let either replace what the other serves. So the files are
two, one for each index, and installed one after the other.
"""

from __future__ import annotations

import json
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._release.lock import Lock
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import hide_credentials

TORCH_FILE, REST_FILE, CONSTRAINTS_FILE = "requirements-torch.txt", "requirements.txt", "constraints.txt"
_MADE = "# Made by gpufleet.workstation from its lock of the environment {name}; changes are overwritten.\n"


def files(environment: t.Mapping[str, t.Any], lock: Lock) -> dict[str, str]:
    """{file name: content} for one environment of a plan: requirements, constraints, a Dockerfile and a Jupyter kernel."""
    made = _MADE.format(name=environment["name"])
    torch_index = hide_credentials(environment["index_url"])
    packages = hide_credentials(environment["package_index_url"])
    rest_head = f"--index-url {packages}\n" if packages else ""
    constraints = "".join(
        f"{item.name}=={item.version}\n" for item in sorted(lock.packages, key=lambda item: item.name)
    )
    return {
        TORCH_FILE: f"{made}# First: pip install --no-deps --require-hashes -r {TORCH_FILE}\n--index-url {torch_index}\n{lock.part(True)}",
        REST_FILE: f"{made}# Then: pip install --no-deps --require-hashes -r {REST_FILE}\n{rest_head}{lock.part(False)}",
        CONSTRAINTS_FILE: f"{made}# For packages of your own beside it: pip install -c {CONSTRAINTS_FILE} NAME\n{constraints}",
        "Dockerfile": _dockerfile(environment, made),
        "kernel.json": json.dumps(kernel(environment), indent=1, sort_keys=True) + "\n",
    }


def _dockerfile(environment: t.Mapping[str, t.Any], made: str) -> str:
    """Any image with the right Python will do: torch's wheels bring CUDA; the host brings the driver (docker run --gpus all)."""
    settings = "".join(f"ENV {name}={value}\n" for name, value in environment["variables"].items())
    return (
        f"{made}FROM python:{environment['spec']['python']}-slim\n"
        f"COPY {TORCH_FILE} {REST_FILE} /tmp/\n"
        f"RUN pip install --no-cache-dir --no-deps --require-hashes -r /tmp/{TORCH_FILE} \\\n"
        f" && pip install --no-cache-dir --no-deps --require-hashes -r /tmp/{REST_FILE}\n"
        f"{settings}"
    )


def kernel(environment: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """A Jupyter kernel that runs in the release that serves when the kernel starts; the environment has to hold ipykernel."""
    python = f"{environment['root']}/{environment['name']}/bin/python"
    return {
        "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": f"{environment['name']} (torch {environment['spec']['torch']})",
        "language": "python",
        "env": dict(environment["variables"]),
    }
