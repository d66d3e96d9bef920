# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the code that a process runs, packed as a program that can run without it."""

from __future__ import annotations

import io
import sys
import zipfile

from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import driver_kernel, torch_checks

_LATE = (
    driver_kernel,
    torch_checks,
)  # where a proof begins they are imported too late to be packed, and both programs prove
PACKAGE = "ansible_collections.gpufleet.workstation.plugins.module_utils"


def packed(entry: str) -> bytes:
    """Pack this collection's code that this process has imported, and ``entry``, with which the program begins.

    The same code gives the same bytes: no times, and nothing compressed, which differs between versions of zlib.
    """
    content = {"__main__.py": entry}
    parts = PACKAGE.split(".")
    for length in range(1, len(parts) + 1):
        content["/".join(parts[:length]) + "/__init__.py"] = ""
    for name, module in list(sys.modules.items()):
        if name.startswith(PACKAGE + "."):
            source = module.__spec__.loader.get_source(name)  # type: ignore[union-attr]
            text = source.decode("utf-8") if isinstance(source, bytes) else source or ""
            file = name.replace(".", "/")
            content[f"{file}/__init__.py" if hasattr(module, "__path__") else f"{file}.py"] = text
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as program:
        for path, text in sorted(content.items()):
            program.writestr(zipfile.ZipInfo(path), text)
    return archive.getvalue()
