from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import manifest


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "lib" / "empty").mkdir(parents=True)
    (tmp_path / "lib" / "a.py").write_text("12345")
    (tmp_path / "lib" / "with space.py").write_text("")
    (tmp_path / "lib64").symlink_to("lib")
    return tmp_path


def test_a_tree_is_written_one_line_a_file_and_sorted(tree: Path) -> None:
    assert manifest.render(manifest.scan(str(tree))) == "5 lib/a.py\n0 lib/with space.py\n-> lib64\tlib\n"


def test_what_was_written_reads_back_the_same(tree: Path) -> None:
    for name in (b"tab\there", b"line\nfeed", b"back\\slash", b"not utf-8 \xff"):
        (tree / os.fsdecode(name)).write_bytes(b"x")
    (tree / "odd link").symlink_to("to\tsomewhere\nelse")
    scanned = manifest.scan(str(tree))
    stored = manifest.encode(manifest.render(scanned))
    assert manifest.parse(manifest.decode(stored)) == scanned
    assert len(stored.splitlines()) == len(scanned) == 8


def test_a_link_to_a_directory_is_not_followed(tree: Path) -> None:
    (tree / "loop").symlink_to(tree)
    assert [path for path in manifest.scan(str(tree)) if path.startswith("loop")] == ["loop"]


def test_missing_changed_and_added_files_are_told_apart(tree: Path) -> None:
    stored = manifest.scan(str(tree))
    (tree / "lib" / "a.py").write_text("1234")
    (tree / "lib" / "with space.py").unlink()
    (tree / "evil.pth").write_text("import os")
    (tree / "lib64").unlink()
    (tree / "lib64").symlink_to("/lib")
    difference = manifest.compare(stored, manifest.scan(str(tree)))
    assert difference.missing == ["lib/with space.py"]
    assert difference.changed == ["lib/a.py", "lib64"]
    assert difference.added == ["evil.pth"]
    assert len(difference.examples) == 4


def test_an_untouched_tree_has_no_difference(tree: Path) -> None:
    assert not manifest.compare(manifest.scan(str(tree)), manifest.scan(str(tree)))


def test_a_socket_in_the_tree_is_seen_as_what_it_is(tree: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "socket"))
        assert manifest.scan(str(tree))["socket"] == "?"


def test_totals_count_links_as_files_without_bytes(tree: Path) -> None:
    assert manifest.totals(manifest.scan(str(tree))) == (3, 5)


@pytest.mark.parametrize("line", ["nonsense", "12", "x lib/a.py", "-> lib64", "-1 lib/a.py"])
def test_a_text_that_is_no_manifest_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        manifest.parse(line + "\n")
