# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: an environment as files for other tools, from the lock that its release was built from. Pure.

They lie beside the releases and describe the one that serves. What they say depends on root, variables and indexes too, so that they
are compared like every other managed file.

pip knows no index for a single package: one file with two indexes would let either replace what the other serves. So the files are
two, one for each index, and installed one after the other.
"""

from __future__ import annotations

import json
import os
import typing as t
import urllib.parse

from ansible_collections.gpufleet.workstation.plugins.module_utils._release.lock import Lock
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import Layout, hide_credentials
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.startup import MARK

TORCH_FILE, REST_FILE, CONSTRAINTS_FILE = "requirements-torch.txt", "requirements.txt", "constraints.txt"
NAMES = (TORCH_FILE, REST_FILE, CONSTRAINTS_FILE, "Dockerfile", "kernel.json")
_MADE = (
    f"# {MARK} from its lock of the environment {{name}}, for Python {{python}} on {{arch}}; changes are overwritten.\n"
)
_INSTALL = "pip install --no-deps --require-hashes"


def paths(root: str, name: str) -> list[str]:
    """Where the files of an environment lie."""
    return [os.path.join(Layout(root, name).takeaway, file) for file in NAMES]


def managed(environment: t.Mapping[str, t.Any], lock: Lock) -> dict[str, tuple[int, str]]:
    """{path: (mode, content)} of one environment of a plan."""
    contents = files(environment, lock)
    return {path: (0o644, contents[os.path.basename(path)]) for path in paths(environment["root"], environment["name"])}


def files(environment: t.Mapping[str, t.Any], lock: Lock) -> dict[str, str]:
    """{file name: content} for one environment of a plan: requirements, constraints, a Dockerfile and a Jupyter kernel."""
    spec = environment["spec"]
    made = _MADE.format(name=environment["name"], python=spec["python"], arch=spec["arch"])
    constraints = "".join(
        f"{item.name}=={item.version}\n" for item in sorted(lock.packages, key=lambda item: item.name)
    )
    return {
        TORCH_FILE: f"{made}# First: {_INSTALL} -r {TORCH_FILE}\n{_index(environment['index_url'])}{lock.part(True)}",
        REST_FILE: f"{made}# Then: {_INSTALL} -r {REST_FILE}\n{_index(environment['package_index_url'])}{lock.part(False)}",
        CONSTRAINTS_FILE: f"{made}# Where these are installed, add packages with: pip install -c {CONSTRAINTS_FILE} NAME\n{constraints}",
        "Dockerfile": _dockerfile(environment, made, [REST_FILE] if lock.part(False) else []),
        "kernel.json": json.dumps(kernel(environment), indent=1, sort_keys=True) + "\n",
    }


def _index(url: str) -> str:
    """The lines that name an index; none where it is pip's default. Credentials stay behind."""
    shown = hide_credentials(url)
    if not shown:
        return ""
    lines = [] if shown == url else ["# The index wants a name and a password: put them into ~/.netrc."]
    parts = urllib.parse.urlsplit(shown)
    if parts.scheme == "http":  # pip ignores it otherwise; what it serves is compared with the hashes
        lines.append(f"--trusted-host {parts.netloc}")
    return "\n".join([*lines, f"--index-url {shown}", ""])


def _dockerfile(environment: t.Mapping[str, t.Any], made: str, rest: list[str]) -> str:
    """Any image with the right Python will do: torch's wheels bring CUDA; the host brings the driver (docker run --gpus all)."""
    chosen = [TORCH_FILE, *rest]
    steps = " \\\n && ".join(f"{_INSTALL} --no-cache-dir -r /tmp/{name}" for name in chosen)
    settings = "".join(f'ENV {name}="{value}"\n' for name, value in environment["variables"].items())
    return (
        f"{made}# Run it with: docker run --gpus all IMAGE\n"
        f"FROM python:{environment['spec']['python']}-slim\n"
        f"COPY {' '.join(chosen)} /tmp/\n"
        f"RUN {steps}\n"
        f"{settings}"
        "RUN useradd --create-home user\n"
        "USER user\n"
        "WORKDIR /home/user\n"
    )


def kernel(environment: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """A Jupyter kernel that runs in the release that serves when the kernel starts; the environment has to hold ipykernel.

    Without "env": Jupyter would prefer that to what the user set. The environment's Python sets its variables where they are missing.
    """
    python = f"{environment['root']}/{environment['name']}/bin/python"
    return {
        "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": f"{environment['name']} (torch {environment['spec']['torch']})",
        "language": "python",
        "metadata": {"comment": f"{MARK}; changes are overwritten."},
    }
