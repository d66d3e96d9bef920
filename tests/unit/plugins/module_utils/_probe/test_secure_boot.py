"""Secure Boot: what is enforced, who signed a module, whether the firmware knows the key."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import secure_boot
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Unreadable

EFI = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.mark.parametrize(("state", "enforced"), [(1, True), (0, False)])
def test_secure_boot_is_the_byte_after_the_attributes(tree, state, enforced):
    assert secure_boot.secure_boot(tree.file(EFI, bytes([6, 0, 0, 0, state])).host()) is enforced


def test_without_uefi_there_is_no_secure_boot(tree):
    assert secure_boot.secure_boot(tree.folder("/sys/firmware").host()) is False


def test_a_firmware_without_the_variable_does_not_enforce(tree):
    assert secure_boot.secure_boot(tree.file("/sys/firmware/efi/efivars/BootOrder-x", b"").host()) is False


def test_secure_boot_is_unknown_where_the_variables_are_not_mounted(tree):
    with pytest.raises(Unreadable, match="efivars is not mounted"):
        secure_boot.secure_boot(tree.folder("/sys/firmware/efi/efivars").host())


def test_secure_boot_is_unknown_when_the_variable_is_cut(tree):
    with pytest.raises(Unreadable, match="holds 3 bytes"):
        secure_boot.secure_boot(tree.file(EFI, b"abc").host())
