# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the manifest of a release, that is what files it holds and how large each is.

One line for everything in the release that is not a directory, sorted by path:

    <size> <path>               a regular file; size in bytes, path relative to the release
    -> <path><TAB><target>      a symbolic link, with the text of the link
    ? <path>                    anything else (device, socket, pipe); never part of an intact release

In paths and targets a backslash, a tab and a line feed are written as \\\\, \\t and \\n; the file is UTF-8 with surrogateescape. So a
release is intact exactly when the text made from its tree equals the text that was stored: one comparison of strings in the
usual case, and compare() says what differs in the other. An added file counts as much as a changed or a missing one.
"""

from __future__ import annotations

import os
import re
import stat
import typing as t

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n"})
_ESCAPED = re.compile(r"\\([\\tn])")


class Difference(t.NamedTuple):
    """How a tree differs from its manifest; paths are relative to the release and sorted."""

    missing: list[str]
    changed: list[str]
    added: list[str]

    @property
    def examples(self) -> list[str]:
        """At most five paths, for messages."""
        return (self.missing + self.changed + self.added)[:5]

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.added)


def escape(name: str) -> str:
    """Write a name so that it holds neither a tab nor a line feed."""
    if "\\" in name or "\n" in name or "\t" in name:
        return name.translate(_ESCAPES)
    return name


def unescape(name: str) -> str:
    """The inverse of escape()."""
    return _ESCAPED.sub(lambda match: {"t": "\t", "n": "\n"}.get(match[1], "\\"), name) if "\\" in name else name


def scan(root: str) -> dict[str, str]:
    """Read a tree: {escaped path: what the manifest says of it}. Never follows a link. Raises OSError."""
    found: dict[str, str] = {}
    pending = [("", root)]
    while pending:
        prefix, directory = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                path = prefix + escape(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append((path + "/", entry.path))
                    continue
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found[path] = str(status.st_size)
                elif stat.S_ISLNK(status.st_mode):
                    found[path] = "->\t" + escape(os.readlink(entry.path))
                else:
                    found[path] = "?"
    return found


def render(tree: dict[str, str]) -> str:
    """The manifest's text for a tree that scan() read."""
    lines = []
    for path in sorted(tree):
        what = tree[path]
        lines.append(f"-> {path}\t{what[3:]}\n" if what.startswith("->") else f"{what} {path}\n")
    return "".join(lines)


def parse(text: str) -> dict[str, str]:
    """The inverse of render(). Raises ValueError for a text that is no manifest."""
    tree: dict[str, str] = {}
    for number, line in enumerate(text.split("\n")[:-1], 1):
        what, space, path = line.partition(" ")
        if not space or not path:
            raise ValueError(f"line {number} is not '<size> <path>'")
        if what == "->":
            path, tab, target = path.partition("\t")
            if not tab:
                raise ValueError(f"line {number} names a link without its target")
            what = "->\t" + target
        elif what != "?" and not what.isdigit():
            raise ValueError(f"line {number} has {what!r} where the size belongs")
        tree[path] = what
    return tree


def compare(stored: dict[str, str], present: dict[str, str]) -> Difference:
    """What differs between the stored manifest and the tree as it is."""
    return Difference(
        missing=sorted(path for path in stored if path not in present),
        changed=sorted(path for path in stored if path in present and present[path] != stored[path]),
        added=sorted(path for path in present if path not in stored),
    )


def totals(tree: dict[str, str]) -> tuple[int, int]:
    """(number of files and links, bytes in files)."""
    return len(tree), sum(int(what) for what in tree.values() if what.isdigit())


def encode(text: str) -> bytes:
    """The bytes of a manifest's text as stored on disk (and hashed for the stamp)."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
    """The inverse of encode()."""
    return data.decode("utf-8", "surrogateescape")
