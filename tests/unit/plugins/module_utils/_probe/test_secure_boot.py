"""Secure Boot: what is enforced, who signed a module, whether the firmware knows the key."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import struct
import uuid

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import secure_boot
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Unreadable
from hypothesis import given
from hypothesis import strategies as st

VARIABLES = "/sys/firmware/efi/efivars"
SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
DATABASE = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
MOK_LIST = f"{VARIABLES}/MokListRT-{SHIM}"
X509 = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
SHA256 = "c1c41626-504c-4092-aca9-41f936934328"
X509_SHA256 = "3bd2a492-96c0-4079-b420-fcf98ef103ed"
# openssl req -new -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -outform DER
CERTIFICATE = base64.b64decode(
    "MIIBxDCCAWugAwIBAgIULDgpORzEnd6KQcViM1oe10M+YoswCgYIKoZIzj0EAwIwNzE1MDMGA1UEAwwsd29ya3N0YXRpb24gU2Vj"
    "dXJlIEJvb3QgTW9kdWxlIFNpZ25hdHVyZSBrZXkwIBcNMjYxMTIyMjM0NjMyWhgPMjEyNjEwMjkyMzQ2MzJaMDcxNTAzBgNVBAMM"
    "LHdvcmtzdGF0aW9uIFNlY3VyZSBCb290IE1vZHVsZSBTaWduYXR1cmUga2V5MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEfMOw"
    "WM+GVy+dHucUN7E/rB174prOb+zd+6pb1fodK/Ko84XoH2taTdPIDn1tIrhHW8KkDOa9/4DFjRt8+LStnaNTMFEwHQYDVR0OBBYE"
    "FGEy4/ZwhQb3uXjdt8ezRKwBqYR9MB8GA1UdIwQYMBaAFGEy4/ZwhQb3uXjdt8ezRKwBqYR9MA8GA1UdEwEB/wQFMAMBAf8wCgYI"
    "KoZIzj0EAwIDRwAwRAIgO9VJW6iVYWxx4k43pGvvmKHMN4voy0VMLmB5JlknLsoCIHcsIV0eoQLx/KkdMSCKtIidq7jEdW/MGKxY"
    "F5eacUmY"
)
# openssl cms -sign -nocerts -noattr -binary -outform DER, as the kernel's sign-file does it; the second with -keyid
SIGNATURE = base64.b64decode(
    "MIHsBgkqhkiG9w0BBwKggd4wgdsCAQExDTALBglghkgBZQMEAgEwCwYJKoZIhvcNAQcBMYG5MIG2AgEBME8wNzE1MDMGA1UEAwws"
    "d29ya3N0YXRpb24gU2VjdXJlIEJvb3QgTW9kdWxlIFNpZ25hdHVyZSBrZXkCFCw4KTkcxJ3eikHFYjNaHtdDPmKLMAsGCWCGSAFl"
    "AwQCATAKBggqhkjOPQQDAgRHMEUCIFdcFlJS599WxgwenXARAtNCvBzv7/RMCCCXTK4Yfe8ZAiEAhc+OSFACfR/WOWUL+b1Eb3+/"
    "5dLKK38ChSMVSRngD/s="
)
SIGNATURE_BY_KEY_ID = base64.b64decode(
    "MIGuBgkqhkiG9w0BBwKggaAwgZ0CAQMxDTALBglghkgBZQMEAgEwCwYJKoZIhvcNAQcBMXwwegIBA4AUYTLj9nCFBve5eN23x7NE"
    "rAGphH0wCwYJYIZIAWUDBAIBMAoGCCqGSM49BAMCBEYwRAIgPs5UHbLrkKcExLjjsIEeA1FqXqWJYypWgzw3nSjT4M4CIHKu7Uvi"
    "z32llSVBXVwKHYM22o0VKNzCvw7cUbaePZMB"
)
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


def test_shim_that_was_told_not_to_check_leaves_nothing_enforced(tree):
    tree.file(EFI, bytes([6, 0, 0, 0, 1])).file(f"{VARIABLES}/MokSBStateRT-{SHIM}", bytes([6, 0, 0, 0, 1]))
    assert secure_boot.secure_boot(tree.host()) is False


def test_a_state_that_anybody_could_have_written_is_not_shims(tree):
    tree.file(EFI, bytes([6, 0, 0, 0, 1])).file(f"{VARIABLES}/MokSBStateRT-{SHIM}", bytes([7, 0, 0, 0, 1]))
    assert secure_boot.secure_boot(tree.host()) is True


def _list(kind, *entries, header=b""):
    """An EFI_SIGNATURE_LIST; every entry begins with its owner's GUID."""
    size = 16 + len(entries[0])
    body = header + b"".join(bytes(range(16)) + entry for entry in entries)
    return uuid.UUID(kind).bytes_le + struct.pack("<III", 28 + len(body), len(header), size) + body


OTHER = CERTIFICATE[:-1] + b"\0"
ATTRIBUTES = bytes([6, 0, 0, 0])


def _key(tree, unknown=None):
    return secure_boot.machine_owner_key(tree.host(), [] if unknown is None else unknown)


def _enrolled(tree):
    return _key(tree)["enrolled"]


@pytest.fixture
def firmware(tree):
    """A machine with UEFI, an empty list of keys, and DKMS's certificate."""
    return tree.file(MOK_LIST, ATTRIBUTES).file("/var/lib/dkms/mok.pub", CERTIFICATE)


def test_a_host_without_a_certificate_has_no_machine_owner_key(tree):
    assert _key(tree.file(MOK_LIST, ATTRIBUTES)) is None


def test_a_key_that_no_list_holds_is_neither_enrolled_nor_pending(firmware):
    assert _key(firmware) == {"path": "/var/lib/dkms/mok.pub", "enrolled": False, "pending": False}


def test_without_uefi_no_key_can_be_enrolled(tree):
    assert _enrolled(tree.file("/var/lib/dkms/mok.pub", CERTIFICATE)) is False


def test_the_certificate_is_found_among_others_in_several_lists(firmware):
    hashes = _list(SHA256, bytes(32), bytes(32))
    firmware.file(MOK_LIST, ATTRIBUTES + hashes + _list(X509, b"\x30\x03abc") + _list(X509, OTHER, CERTIFICATE))
    assert _enrolled(firmware) is True


def test_a_list_as_efitools_writes_it(firmware):
    head = base64.b64decode(
        "oVnApeSUp0qHtasVXCvwcvQBAAAAAAAA2AEAABEREREiIjMzREQSNFZ4mrw="
    )  # cert-to-efi-sig-list of CERTIFICATE, up to it
    assert head + CERTIFICATE == _list(X509, CERTIFICATE)[:28] + head[28:] + CERTIFICATE
    assert _enrolled(firmware.file(MOK_LIST, ATTRIBUTES + head + CERTIFICATE)) is True


def test_a_certificate_in_the_firmwares_own_database_counts(firmware):
    firmware.file(f"{VARIABLES}/db-{DATABASE}", ATTRIBUTES + _list(X509, CERTIFICATE, header=b"head"))
    assert _enrolled(firmware) is True


def test_the_hash_of_the_signed_part_stands_for_the_certificate(firmware):
    signed = CERTIFICATE[4 : 4 + 4 + int.from_bytes(CERTIFICATE[6:8], "big")]
    firmware.file(MOK_LIST, ATTRIBUTES + _list(X509_SHA256, hashlib.sha256(signed).digest() + bytes(16)))
    assert _enrolled(firmware) is True
    firmware.file(MOK_LIST, ATTRIBUTES + _list(X509_SHA256, hashlib.sha256(CERTIFICATE).digest() + bytes(16)))
    assert _enrolled(firmware) is False


def test_a_forbidden_certificate_is_not_enrolled_wherever_else_it_is(firmware):
    firmware.file(MOK_LIST, ATTRIBUTES + _list(X509, CERTIFICATE))
    firmware.file(f"{VARIABLES}/MokListXRT-{SHIM}", ATTRIBUTES + _list(X509, CERTIFICATE))
    assert _enrolled(firmware) is False


def test_a_key_that_waits_for_the_console_is_pending(firmware):
    firmware.file(f"{VARIABLES}/MokNew-{SHIM}", bytes([7, 0, 0, 0]) + _list(X509, CERTIFICATE))
    assert _key(firmware) == {"path": "/var/lib/dkms/mok.pub", "enrolled": False, "pending": True}


def test_a_long_list_goes_on_in_the_next_variable_or_is_whole_in_one_file(firmware):
    firmware.file(f"{VARIABLES}/MokListRT1-{SHIM}", ATTRIBUTES + _list(X509, CERTIFICATE))
    assert _enrolled(firmware) is True
    firmware.file("/sys/firmware/efi/mok-variables/MokListRT", _list(X509, OTHER))
    assert _enrolled(firmware) is False
    firmware.file("/sys/firmware/efi/mok-variables/MokListRT", _list(X509, OTHER) + _list(X509, CERTIFICATE))
    assert _enrolled(firmware) is True


def test_ubuntus_key_and_the_one_of_dkms_configuration(tree):
    assert secure_boot.certificate_path(tree.host()) == "/var/lib/dkms/mok.pub"
    tree.file("/var/lib/shim-signed/mok/MOK.der", CERTIFICATE)
    assert secure_boot.certificate_path(tree.host()) == "/var/lib/shim-signed/mok/MOK.der"
    tree.file("/etc/dkms/framework.conf", '# mok_certificate=/no\nmok_certificate="/etc/keys/a.der"\n')
    assert secure_boot.certificate_path(tree.host()) == "/etc/keys/a.der"
    tree.file("/etc/dkms/framework.conf.d/x.conf", "mok_certificate=/etc/keys/b.der # ours\n")
    assert secure_boot.certificate_path(tree.host()) == "/etc/keys/b.der"


def test_a_certificate_in_pem_is_the_same_certificate(firmware):
    firmware.file(MOK_LIST, ATTRIBUTES + _list(X509, CERTIFICATE))
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(CERTIFICATE) + b"-----END CERTIFICATE-----\n"
    assert _enrolled(firmware.file("/var/lib/dkms/mok.pub", pem)) is True


WHOLE = _list(X509, CERTIFICATE)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (WHOLE[:20], "ends within its header"),
        (WHOLE[:-1], "contradict"),
        (WHOLE[:16] + struct.pack("<III", 0, 0, 0), "contradict"),
        (WHOLE[:16] + struct.pack("<III", 28, 0, 16), "contradict"),
        (WHOLE[:16] + struct.pack("<III", 28, 4000, 40), "contradict"),
        (WHOLE + b"\0" * 5, "ends within its header"),
    ],
)
def test_a_damaged_list_makes_enrolment_unknown_and_never_true(firmware, data, why):
    unknown = []
    firmware.file(MOK_LIST, ATTRIBUTES + data)
    assert _key(firmware, unknown) == {"path": "/var/lib/dkms/mok.pub", "enrolled": None, "pending": False}
    assert [entry["what"] for entry in unknown] == ["os.machine_owner_key.enrolled"]
    assert why in unknown[0]["why"]


def test_variables_that_are_not_mounted_make_enrolment_unknown(tree):
    unknown = []
    tree.folder("/sys/firmware/efi/efivars").file("/var/lib/dkms/mok.pub", CERTIFICATE)
    assert _key(tree, unknown)["enrolled"] is None
    assert "not mounted" in unknown[0]["why"]


@pytest.mark.parametrize("data", [b"", b"\x30", b"\x30\x84", b"garbage", b"\x30\x03abc"])
def test_a_certificate_that_is_none_is_never_enrolled(firmware, data):
    unknown = []
    firmware.file("/var/lib/dkms/mok.pub", data).file(MOK_LIST, ATTRIBUTES + _list(X509_SHA256, bytes(48)))
    assert not _key(firmware, unknown)["enrolled"]


@given(st.binary(max_size=200))
def test_no_bytes_make_a_signature_list_raise_anything_else(data):
    with contextlib.suppress(Unreadable):
        assert all(len(kind) == 16 for kind, _entry in secure_boot.signatures(data))


def _signed(signature, kind=2, size=None, name=b""):
    trailer = struct.pack(">BBBBB3xI", 0, 0, kind, len(name), 0, len(signature) if size is None else size)
    return io.BytesIO(b"\x7fELF module" + name + signature + trailer + b"~Module signature appended~\n")


def test_the_signer_is_the_issuer_that_the_signature_names():
    assert secure_boot.module_signer(_signed(SIGNATURE)) == "workstation Secure Boot Module Signature key"


def test_the_old_form_names_its_signer_in_clear():
    assert secure_boot.module_signer(_signed(b"\1\2\3", kind=1, name=b"Fedora\0 kernel")) == "Fedora kernel"


def test_a_module_without_a_signature_has_no_signer():
    assert secure_boot.module_signer(io.BytesIO(b"\x7fELF" + bytes(100))) is None
    assert secure_boot.module_signer(io.BytesIO(b"")) is None


@pytest.mark.parametrize(
    "file",
    [
        _signed(SIGNATURE_BY_KEY_ID),
        _signed(b"\x30\x80garbage"),
        _signed(SIGNATURE[:-40]),
        _signed(SIGNATURE, kind=0),
        _signed(SIGNATURE, size=2**32 - 1),
        _signed(SIGNATURE, size=0),
        _signed(b""),
    ],
    ids=["key id", "garbage", "cut", "other kind", "endless", "empty", "nothing"],
)
def test_a_signature_that_names_nobody_is_still_one(file):
    assert secure_boot.module_signer(file) == "signed"


@given(st.one_of(st.binary(max_size=80), st.tuples(st.integers(0, 238), st.integers(0, 255))))
def test_no_signature_makes_the_reader_raise(change):
    if isinstance(change, tuple):
        data = bytearray(SIGNATURE)
        data[change[0]] = change[1]
        change = bytes(data)
    name = secure_boot.signer_of_cms(change)
    assert name is None or (name and name.isprintable())
