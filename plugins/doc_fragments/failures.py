# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every failure that a check can have, as notes of a module: made of the table that the module itself uses."""

from __future__ import annotations

import json

from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import failures


def notes() -> list[str]:
    """One note for each failure, the words before the numbers."""
    rows = sorted(failures.TABLE.values(), key=lambda row: row.code.startswith(("cuda_", "nvml_")))
    intro = "The codes of checks, with cause and remedy, follow. Where they are from and how they are tested is in docs/failures.md."
    return [intro, *(f"C({row.code}), {row.title} - {row.cause}. {row.remedy}" for row in rows)]


class ModuleDocFragment:
    """Extends a module's documentation."""

    # With its type: ansible-test reads plain assignments in this folder as YAML, and this one has to be made first.
    DOCUMENTATION: str = "options: {}\nnotes: " + json.dumps(notes())
