/* Copyright: the gpufleet.workstation maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Stands for those libraries of the driver that nothing in the sandbox calls. */
const char gpufleet_sandbox_note[] = "SIMULATED by the gpufleet sandbox";
