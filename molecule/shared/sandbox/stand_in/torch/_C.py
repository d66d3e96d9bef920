# ruff: noqa: N802, N999  # torch's own names
# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What torch's extension module says of the build."""


def _cuda_getArchFlags() -> str:
    return "@FLAGS@"


def _cuda_getDeviceCount() -> int:
    return 0
