# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the files that we write, those inside a release and the launchers outside it, as text.

The module inside the release sets the environment's variables at every start of its Python, also where nothing else would (a
scrubbed environment, an editor, a notebook). What the process's own environment holds wins.
"""

from __future__ import annotations

import os
import shlex

MARK = "Written by gpufleet.workstation"

PTH_NAME = "gpufleet_runtime.pth"
PTH = "import _gpufleet_runtime\n"
MODULE_NAME = "_gpufleet_runtime.py"
MODULE = f'''"""{MARK}: sets the variables of runtime.env, two levels above the release, unless they are set."""
import os
import sys


def _set_variables():
    try:
        path = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(sys.prefix))), "runtime.env")
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

_ACTIVATE = """# {mark}: to be sourced. The shell stays with the release that serves now.
if _gpufleet_release=$(readlink -f {current}) && [ -r "$_gpufleet_release/bin/activate" ]; then
    . "$_gpufleet_release/bin/activate"
    unset _gpufleet_release
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
else
    echo {missing} >&2
    false
end
"""

_COMMAND = """#!/bin/sh
# {mark}: runs commands in the environments below one directory.
root={root}

usage() {{
    echo 'usage: gpu-env list | gpu-env path NAME | gpu-env run NAME COMMAND [ARGUMENT...]' >&2
    exit 2
}}

# A process that was started through the symlink would import late modules from the next release: resolve it first.
resolve() {{
    case $1 in
        '' | .* | *[!a-z0-9._-]*)
            echo "gpu-env: '$1' is no name of an environment" >&2
            exit 2
            ;;
    esac
    if ! release=$(readlink -f "$root/$1/current") || [ ! -x "$release/bin/python" ]; then
        echo "gpu-env: no environment '$1' that you can use is in $root; 'gpu-env list' shows what there is" >&2
        exit 127
    fi
}}

case ${{1-}} in
    list)
        [ $# -eq 1 ] || usage
        for link in "$root"/*/current; do
            if release=$(readlink -f "$link") && [ -x "$release/bin/python" ]; then
                name=${{link%/current}}
                printf '%s\\t%s\\n' "${{name##*/}}" "${{release##*/}}"
            fi
        done
        ;;
    path)
        [ $# -eq 2 ] || usage
        resolve "$2"
        printf '%s\\n' "$release"
        ;;
    run)
        [ $# -ge 3 ] || usage
        resolve "$2"
        shift 2
        VIRTUAL_ENV=$release
        PATH=$release/bin:$PATH
        export VIRTUAL_ENV PATH
        unset PYTHONHOME
        exec "$@"
        ;;
    *)
        usage
        ;;
esac
"""


def environment_files(root: str, name: str) -> dict[str, tuple[int, str]]:
    """{path: (mode, content)} of one environment's own launchers."""
    home = os.path.join(root, name)
    words = {
        "mark": MARK,
        "current": shlex.quote(os.path.join(home, "current")),
        "missing": shlex.quote(f"{home}: no release of this environment serves, or you may not use it"),
    }
    return {
        os.path.join(home, "bin", "python"): (0o755, _PYTHON.format(**words)),
        os.path.join(home, "bin", "activate"): (0o644, _ACTIVATE.format(**words)),
        os.path.join(home, "bin", "activate.fish"): (0o644, _ACTIVATE_FISH.format(**words)),
    }


def command_file(root: str) -> tuple[int, str]:
    """(mode, content) of the host's command gpu-env."""
    return 0o755, _COMMAND.format(mark=MARK, root=shlex.quote(root))
