# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Secure Boot: what it enforces, who signed a module, and whether the firmware knows DKMS's key.

Everything is read from the firmware's variables as the kernel shows them and from the files themselves; no mokutil is run.
Formats: UEFI specification, "Signature Database" (EFI_SIGNATURE_LIST); shim's MokVars.txt; Linux include/linux/module_signature.h;
RFC 5652 (CMS) and RFC 5280 (certificates) in DER.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import re
import struct
from typing import Any, BinaryIO, Iterator

from .host import KIB, MIB, Host, Unreadable, reason

_EFI = "/sys/firmware/efi"
_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
_DATABASE = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
_NON_VOLATILE = 1


def _guid(text: str) -> bytes:
    """A GUID as EFI writes it: the first three numbers are little-endian."""
    first, second, third, *rest = text.split("-")
    numbers = struct.pack("<IHH", int(first, 16), int(second, 16), int(third, 16))
    return numbers + bytes.fromhex("".join(rest))


# Of EFI_SIGNATURE_LIST: whole certificates, and hashes of a certificate's signed part.
_X509 = _guid("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_X509_HASHES = {
    _guid("3bd2a492-96c0-4079-b420-fcf98ef103ed"): "sha256",
    _guid("7076876e-80c2-4ee6-aad2-28b349a6865b"): "sha384",
    _guid("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): "sha512",
}
_LIST_HEADER = struct.Struct("<16sIII")
_OWNER = 16

_SETTING = re.compile(r"^\s*mok_certificate=[\"']?([^\"'\s#]+)", re.MULTILINE)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)

_MAGIC = b"~Module signature appended~\n"
_TRAILER = struct.Struct(
    ">BBBBB3xI"
)  # struct module_signature: algorithm, hash, kind, lengths of signer, key id, signature
_PKCS7 = 2
_SIGNATURE_LIMIT = 64 * KIB
_COMMON_NAME = b"\x55\x04\x03"
_SEQUENCE, _SET, _OBJECT = 0x30, 0x31, 0x06


def secure_boot(host: Host) -> bool | None:
    """Return what is enforced; False where there is no UEFI or shim was told not to check, as the kernel decides it."""
    if not host.is_dir(_EFI):
        return False
    try:
        data = host.read_bytes(f"{_EFI}/efivars/SecureBoot-{_GLOBAL}", 64)
    except FileNotFoundError:
        if host.names(f"{_EFI}/efivars"):
            return False
        raise Unreadable(f"{_EFI}/efivars is not mounted") from None
    if len(data) < 5:
        raise Unreadable(f"{_EFI}/efivars/SecureBoot-{_GLOBAL} holds {len(data)} bytes instead of 5")
    if data[4] != 1:
        return False
    disabled = _variable(host, "MokSBStateRT", _SHIM)
    return not (disabled and len(disabled) > 4 and not disabled[0] & _NON_VOLATILE and disabled[4] == 1)


def machine_owner_key(host: Host, unknown: list[dict[str, str]]) -> dict[str, Any] | None:
    """Return {path, enrolled, pending} of the certificate that DKMS signs with, or None where there is none yet."""
    path = certificate_path(host)
    try:
        data = host.read_bytes(path, 64 * KIB)
    except FileNotFoundError:
        return None
    found: dict[str, Any] = {"path": path, "enrolled": None, "pending": False}
    try:
        certificate = _der(data)
        if not host.is_dir(_EFI):
            return {**found, "enrolled": False}
        if not host.names(f"{_EFI}/efivars"):
            raise Unreadable(f"{_EFI}/efivars is not mounted")
        trusted = [*_lists(host, "MokListRT", _SHIM), *_lists(host, "db", _DATABASE)]
        # dbx is the firmware maker's list, which no key made on this machine is in; it is long and slow to read.
        forbidden = _lists(host, "MokListXRT", _SHIM)
        found["enrolled"] = _listed(certificate, trusted) and not _listed(certificate, forbidden)
        found["pending"] = not found["enrolled"] and _listed(certificate, _lists(host, "MokNew", _SHIM))
    except (OSError, Unreadable) as error:
        unknown.append({"what": "os.machine_owner_key.enrolled", "why": reason(error)})
    return found


def certificate_path(host: Host) -> str:
    """Return the certificate that DKMS is configured to sign with, else the distribution's usual one."""
    ubuntu = "/var/lib/shim-signed/mok/MOK.der"
    path = ubuntu if host.exists(ubuntu) else "/var/lib/dkms/mok.pub"
    folder = "/etc/dkms/framework.conf.d"
    files = ["/etc/dkms/framework.conf", *(f"{folder}/{name}" for name in host.names(folder) if name.endswith(".conf"))]
    for file in files:
        path = (_SETTING.findall(host.text(file) or "") or [path])[-1]
    return path


def signatures(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, entry) of every EFI_SIGNATURE_LIST; raise Unreadable where the lengths contradict each other."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < _LIST_HEADER.size:
            raise Unreadable("a list of signatures ends within its header")
        kind, size, header, entry = _LIST_HEADER.unpack_from(data, offset)
        start = offset + _LIST_HEADER.size + header
        end = offset + size
        if size < _LIST_HEADER.size or end > len(data) or entry <= _OWNER or start > end or (end - start) % entry:
            raise Unreadable("a list of signatures has lengths that contradict each other")
        for place in range(start, end, entry):
            yield kind, data[place + _OWNER : place + entry]
        offset = end


def module_signer(file: BinaryIO) -> str | None:
    """Return who signed a kernel module (the issuer's common name, else "signed"), or None for an unsigned one."""
    end = file.seek(0, os.SEEK_END)
    length = len(_MAGIC) + _TRAILER.size
    if end < length:
        return None
    file.seek(end - length)
    tail = file.read(length)
    if not tail.endswith(_MAGIC):
        return None
    _algorithm, _hash, kind, name, key, size = _TRAILER.unpack_from(tail)
    start = end - length - size - key - name
    if size > _SIGNATURE_LIMIT or start < 0:
        return "signed"
    file.seek(start)
    data = file.read(name + key + size)
    if kind == _PKCS7:
        return signer_of_cms(data[name + key :]) or "signed"
    return _printable(data[:name]) or "signed"  # before Linux 4.3 the name stood in clear


def signer_of_cms(data: bytes) -> str | None:
    """Return the common name of the first SignerInfo's issuer, or None where it has none or is damaged."""
    try:
        (content,) = list(_elements(data))[:1]
        explicit = list(_elements(content[1]))[1]  # after the object identifier of SignedData
        signed_data = next(_elements(explicit[1]))
        tag, infos = list(_elements(signed_data[1]))[-1]
        info = next(_elements(infos)) if tag == _SET else (0, b"")
        identifier = list(_elements(info[1]))[1]  # after the version: issuer and serial number, or a key identifier
        tag, issuer = next(_elements(identifier[1])) if identifier[0] == _SEQUENCE else (0, b"")
        for _tag, relative in _elements(issuer) if tag == _SEQUENCE else ():
            for _tag, attribute in _elements(relative):
                kind, value = list(_elements(attribute))[:2]
                if kind == (_OBJECT, _COMMON_NAME):
                    return _text(value) or None
    except (ValueError, IndexError, StopIteration):
        return None
    return None


def _text(value: tuple[int, bytes]) -> str:
    """A directory string, printable: BMPString is UTF-16, the others are read as UTF-8."""
    return _printable(value[1], "utf-16-be" if value[0] == 0x1E else "utf-8")


def _printable(data: bytes, encoding: str = "utf-8") -> str:
    return "".join(letter for letter in data.decode(encoding, "replace") if letter.isprintable()).strip()


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (tag, content) of the DER elements in a row; raise ValueError for anything that is none."""
    offset = 0
    while offset < len(data):
        if offset + 2 > len(data):
            raise ValueError("an element ends within its header")
        tag, length = data[offset], data[offset + 1]
        offset += 2
        if length & 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4 or offset + count > len(data):
                raise ValueError("an element has no length")
            length = int.from_bytes(data[offset : offset + count], "big")
            offset += count
        if offset + length > len(data):
            raise ValueError("an element is longer than what holds it")
        yield tag, data[offset : offset + length]
        offset += length


def _der(data: bytes) -> bytes:
    """The certificate in DER, also where the file is PEM."""
    match = _PEM.search(data)
    try:
        certificate = binascii.a2b_base64(match.group(1)) if match else data
        tag, _content = next(_elements(certificate))
    except (binascii.Error, ValueError, StopIteration):
        tag = 0
    if tag != _SEQUENCE:
        raise Unreadable("DKMS's certificate is no X.509 certificate")
    return certificate


def _listed(certificate: bytes, lists: list[tuple[bytes, bytes]]) -> bool:
    """Whether the certificate is in the lists, whole or as the hash of its signed part."""
    for kind, entry in lists:
        if kind == _X509 and entry == certificate:
            return True
        if kind in _X509_HASHES:
            digest = hashlib.new(_X509_HASHES[kind], _signed_part(certificate)).digest()
            if entry[: len(digest)] == digest:  # the time of revocation follows
                return True
    return False


def _signed_part(certificate: bytes) -> bytes:
    """TBSCertificate with its own header: the first element inside the certificate."""
    try:
        content = next(_elements(certificate))[1]
        first = next(_elements(content))[1]
    except (ValueError, StopIteration):
        raise Unreadable("DKMS's certificate is no X.509 certificate") from None
    header = 2 + (content[1] & 0x7F if content[1] & 0x80 else 0)
    return content[: header + len(first)]


def _lists(host: Host, name: str, vendor: str) -> list[tuple[bytes, bytes]]:
    """The entries of a variable. Where it is too long for one, shim goes on in NAME1, NAME2; newer kernels show all in one file."""
    whole = f"{_EFI}/mok-variables/{name}"
    if host.exists(whole):
        return list(signatures(host.read_bytes(whole, MIB)))
    found: list[tuple[bytes, bytes]] = []
    for number in ("", *map(str, range(1, 10))):
        data = _variable(host, name + number, vendor)
        if data is None:
            break
        found += signatures(data[4:])
    return found


def _variable(host: Host, name: str, vendor: str) -> bytes | None:
    """A firmware variable, its attributes (4 bytes) first, or None where it is not set."""
    try:
        return host.read_bytes(f"{_EFI}/efivars/{name}-{vendor}", MIB)
    except FileNotFoundError:
        return None
