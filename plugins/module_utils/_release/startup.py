# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the files that we write, those inside a release and the launchers outside it, as text.

The module inside the release sets the environment's variables at every start of its Python, also where nothing else would (a
scrubbed environment, an editor, a notebook). What the process's own environment holds wins.
"""

from __future__ import annotations

import os
import shlex

from ansible_collections.gpufleet.workstation.plugins.module_utils._proof.runner import source_of
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import gpu_env
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.gpu_env import MARK

PTH_NAME = "gpufleet_runtime.pth"
PTH = "import _gpufleet_runtime\n"
MODULE_NAME = "_gpufleet_runtime.py"
MODULE = f'''"""{MARK}: sets the variables of runtime.env, two levels above this release, unless they are set."""
import os


def _set_variables():
    try:
        # Not from sys.prefix: the prefix of an overlay, which sees this file as well, is somewhere else.
        packages = os.path.dirname(os.path.realpath(__file__))
        path = os.path.join(packages, *[os.pardir] * 5, "runtime.env")
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                name, equals, value = line.strip().partition("=")
                if equals and name and not name.startswith("#"):
                    os.environ.setdefault(name, value)
    except (OSError, ValueError):
        return  # the start of Python must not depend on this file


_set_variables()
del _set_variables
'''

_PYTHON = """#!/bin/sh
# {mark}: the Python of the release that serves now. A process stays with the release it was started from.
if ! release=$(readlink -f {current}) || [ ! -x "$release/bin/python" ]; then
    echo {missing} >&2
    exit 127
fi
exec "$release/bin/python" "$@"
"""

_ACTIVATE = r"""# {mark}: to be sourced. The shell stays with the release that serves now.
if _gpufleet_release=$(readlink -f {current}) && [ -r "$_gpufleet_release/bin/activate" ]; then
    . "$_gpufleet_release/bin/activate"
    unset _gpufleet_release
    # What an environment that was activated before has set goes; what the shell has of its own stays.
    [ -z "${{_gpufleet_variables-}}" ] || eval "unset $_gpufleet_variables"
    _gpufleet_variables=
    if [ -r {variables} ]; then
        while IFS= read -r _gpufleet_line; do
            _gpufleet_name=${{_gpufleet_line%%=*}}
            case $_gpufleet_line in
            [!#]*=*)
                if eval "[ -z \"\${{$_gpufleet_name+set}}\" ]"; then
                    export "$_gpufleet_line"
                    _gpufleet_variables="$_gpufleet_variables $_gpufleet_name"
                fi
                ;;
            esac
        done < {variables}
        unset _gpufleet_line _gpufleet_name
    fi
else
    unset _gpufleet_release
    echo {missing} >&2
    false
fi
"""

_ACTIVATE_FISH = """# {mark}: to be sourced by fish. The shell stays with the release that serves now.
set --local release (readlink -f {current})
if test -r "$release/bin/activate.fish"
    source "$release/bin/activate.fish"
    set --query _gpufleet_variables[1]; and set --erase $_gpufleet_variables
    set --global _gpufleet_variables
    if test -r {variables}
        for line in (string match --regex '^[^#].*=.*' < {variables})
            set --local pair (string split --max 1 = -- $line)
            if not set --query $pair[1]
                set --global --export $pair[1] $pair[2]
                set --append _gpufleet_variables $pair[1]
            end
        end
    end
else
    echo {missing} >&2
    false
end
"""


def environment_files(root: str, name: str) -> dict[str, tuple[int, str]]:
    """{path: (mode, content)} of one environment's own launchers."""
    home = os.path.join(root, name)
    words = {
        "mark": MARK,
        "current": shlex.quote(os.path.join(home, "current")),
        "variables": shlex.quote(os.path.join(home, "runtime.env")),
        "missing": shlex.quote(f"{home}: no release of this environment serves, or you may not use it"),
    }
    return {
        os.path.join(home, "bin", "python"): (0o755, _PYTHON.format(**words)),
        os.path.join(home, "bin", "activate"): (0o644, _ACTIVATE.format(**words)),
        os.path.join(home, "bin", "activate.fish"): (0o644, _ACTIVATE_FISH.format(**words)),
    }


def command_file(root: str) -> tuple[int, str]:
    """(mode, content) of the host's command gpu-env, for the Python of the system, without anything that users could add to it."""
    here = source_of(gpu_env).replace(f'\nROOT = "{gpu_env.ROOT}"\n', f"\nROOT = {root!r}\n", 1)
    return 0o755, f"#!/usr/bin/python3 -IS\n# {MARK}: changes are overwritten.\n{here}"
