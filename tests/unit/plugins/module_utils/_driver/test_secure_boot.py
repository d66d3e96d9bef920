"""The machine owner key: made, staged, never called enrolled."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver import secure_boot
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.commands import NOT_THERE, Done
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import DriverError
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host

PASSWORD = "correct horse"  # noqa: S105  # made up
HASH = "$6$B44DJnDnMq/uPzz$hDFjaAqyG8dRrhmULX/Qglr0UXyLBCFPlAbAspjLxOoFPfcT3NlONyWRwQgyCS4YN0wzDg/v41eT4qC5i2vfg0"


class Firmware:
    """Plays mokutil 0.7.2 as it was recorded on Debian 13, and the programs that make a key."""

    def __init__(self, root: Path, words: str = "is not enrolled", makers: tuple[str, ...] = ("dkms",)) -> None:
        self.root, self.words, self.makers = root, words, makers
        self.asked: list[list[str]] = []
        self.told: list[str] = []
        self.stages = True
        self.key = ("/var/lib/dkms/mok.key", "/var/lib/dkms/mok.pub")

    def __call__(self, argv, time_limit, environment=None, text=""):
        self.asked.append(list(argv))
        self.told.append(text)
        if argv[0] in self.makers:
            for path in self.key:
                (self.root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                (self.root / path.lstrip("/")).write_text("key")
            return Done(0, "")
        if argv[0] != "mokutil":
            return Done(NOT_THERE, f"{argv[0]} is not installed")
        if argv[1] == "--test-key":
            return Done("already" in self.words, f"{argv[2]} {self.words}\n")
        if argv[1] == "--generate-hash":
            return Done(0, f"input password: \ninput password again: \n{HASH}\n")
        assert argv[1] == "--import"
        self.hash = Path(argv[4]).read_text()
        self.hash_mode = Path(argv[4]).stat().st_mode & 0o777
        if self.stages:
            self.words = "is already in the enrollment request"
        return Done(0, "")


@pytest.fixture
def host(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    return Host(root=str(tmp_path))


@pytest.fixture
def firmware(tmp_path):
    return Firmware(tmp_path)


def test_a_key_is_made_and_staged_and_waits_for_the_console(host, firmware):
    staged = secure_boot.stage(host, firmware, PASSWORD)
    assert (staged.state, staged.changed) == ("pending", True)
    assert "mokutil: /var/lib/dkms/mok.pub is already in the enrollment request" in staged.text
    assert "Enroll MOK" in staged.text
    assert ["dkms", "generate_mok"] in firmware.asked
    assert firmware.hash == HASH
    assert firmware.hash_mode == 0o600


def test_no_command_line_and_no_file_shows_the_password(host, firmware, tmp_path):
    secure_boot.stage(host, firmware, PASSWORD)
    assert not any(PASSWORD in word for argv in firmware.asked for word in argv)
    assert firmware.told.count(f"{PASSWORD}\n{PASSWORD}\n") == 1
    assert not Path(firmware.asked[-2][4]).exists()
    assert not any(PASSWORD in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_a_key_that_waits_already_is_not_staged_again(host, firmware):
    secure_boot.stage(host, firmware, PASSWORD)
    firmware.asked.clear()
    again = secure_boot.stage(host, firmware, PASSWORD)
    assert (again.state, again.changed) == ("pending", False)
    assert firmware.asked == [["mokutil", "--test-key", "/var/lib/dkms/mok.pub"]]


def test_an_enrolled_key_needs_nothing(host, firmware):
    firmware.words = "is already enrolled"
    secure_boot.stage(host, firmware, "")
    firmware.asked.clear()
    staged = secure_boot.stage(host, firmware, "")
    assert (staged.state, staged.changed) == ("enrolled", False)
    assert [argv[1] for argv in firmware.asked] == ["--test-key"]


def test_without_a_password_a_person_hears_the_ways(host, firmware):
    with pytest.raises(
        DriverError, match=r"nvidia_driver_mok_password .* `mokutil --import /var/lib/dkms/mok.pub`.* is kept"
    ):
        secure_boot.stage(host, firmware, "")
    assert not any("--import" in argv for argv in firmware.asked)


def test_what_mokutil_took_but_did_not_stage_is_never_called_staged(host, firmware):
    firmware.stages = False
    with pytest.raises(DriverError, match=r"is not staged; mokutil says: /var/lib/dkms/mok.pub is not enrolled"):
        secure_boot.stage(host, firmware, PASSWORD)


@pytest.mark.parametrize("words", ["EFI variables are not supported on this system", "is blocked in MokListX"])
def test_a_firmware_that_cannot_is_quoted(host, firmware, words):
    firmware.words = words
    with pytest.raises(DriverError, match=f"mokutil says: .*{words}"):
        secure_boot.stage(host, firmware, PASSWORD)


@pytest.mark.parametrize(
    ("step", "done"),
    [
        ("--generate-hash", Done(255, "password doesn't match\nAbort\n")),
        ("--import", Done(255, "Failed to enroll new keys\n")),
    ],
)
def test_a_step_that_fails_is_quoted(host, firmware, step, done):
    def fails(argv, *more):
        return done if step in argv else firmware(argv, *more)

    with pytest.raises(DriverError, match=done.last_words):
        secure_boot.stage(host, fails, PASSWORD)


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("is not enrolled", "absent"),
        ("is already in the enrollment request", "pending"),
        ("is already enrolled", "enrolled"),
        ("is already in db", "enrolled"),
        ("is blocked in dbx", "unknown"),
        ("says something new", "unknown"),
    ],
)
def test_the_state_is_what_mokutil_says(firmware, words, state):
    firmware.words = words
    assert secure_boot.state(firmware, "/k.pub") == (state, f"/k.pub {words}")


def test_without_mokutil_the_state_is_unknown():
    assert secure_boot.state(lambda *_: Done(NOT_THERE, "mokutil is not installed"), "/k") == (
        "unknown",
        "mokutil is not installed",
    )


@pytest.mark.parametrize("maker", ["dkms", "openssl"])
def test_a_missing_key_is_made_by_what_is_there(host, tmp_path, maker):
    firmware = Firmware(tmp_path, makers=(maker,))
    secure_boot.stage(host, firmware, PASSWORD)
    assert (tmp_path / "var/lib/dkms/mok.key").exists()


def test_ubuntu_makes_its_own_key_and_asks_no_questions(host, tmp_path):
    (tmp_path / "etc/os-release").write_text('NAME="Ubuntu"\nID=ubuntu\n')
    firmware = Firmware(tmp_path, makers=("update-secureboot-policy",))
    firmware.key = ("/var/lib/shim-signed/mok/MOK.priv", "/var/lib/shim-signed/mok/MOK.der")
    assert secure_boot.stage(host, firmware, PASSWORD).key.certificate == "/var/lib/shim-signed/mok/MOK.der"
    assert firmware.asked[0] == ["update-secureboot-policy", "--new-key"]


def test_a_key_that_nothing_can_make_is_said(host, tmp_path):
    with pytest.raises(DriverError, match=r"/var/lib/dkms/mok.key cannot be made: openssl is not installed"):
        secure_boot.stage(host, Firmware(tmp_path, makers=()), PASSWORD)


def test_a_key_that_dkms_is_configured_for_is_used(host, tmp_path):
    (tmp_path / "etc/dkms/framework.conf.d").mkdir(parents=True)
    (tmp_path / "etc/dkms/framework.conf").write_text(
        '# mok_signing_key="/not/this"\nmok_signing_key="/root/keys/our.key"\nmok_certificate=/root/keys/our.der # ours\n'
    )
    assert secure_boot.signing_key(host) == secure_boot.Key("/root/keys/our.key", "/root/keys/our.der")
    (tmp_path / "etc/dkms/framework.conf.d/50.conf").write_text("mok_certificate='/root/keys/new.der'\n")
    assert secure_boot.signing_key(host) == secure_boot.Key("/root/keys/our.key", "/root/keys/new.der")
