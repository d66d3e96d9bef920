# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a provisioned host must show, found by means of its own: dpkg, apt, modinfo, systemctl, real logins. Never gpu_info.

Every function takes a host from `hosts.named` and either asserts or returns what it read. Commands run as root.
"""
