# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: where a mirror's wheels come from: the real indexes, or a folder that somebody carried there."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import time
import typing as t
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit, urlunsplit

from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.store import Offer, Truncated
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.wheels import (
    PACKAGE_INDEX,
    TORCH_INDEXES,
    Link,
    MirrorError,
    Wanted,
    normalized,
    read_page,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import hide_credentials
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.tool import sha256_of

ATTEMPTS = 3
STALLED = 60
"""Seconds without a byte after which a connection counts as dead."""
_PAGE_LIMIT = 64 << 20
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
T = t.TypeVar("T")


class Source(t.Protocol):
    """Offers wheels of a project, and opens one."""

    def links(self, wanted: Wanted) -> list[Link]: ...

    def take(self, link: Link, store: t.Callable[[Offer], T]) -> T: ...


class Indexes:
    """The torch index and the package index."""

    def __init__(self, torch_base_url: str, package_url: str, wait: t.Callable[[float], None] = time.sleep) -> None:
        self._urls = {TORCH_INDEXES: torch_base_url.rstrip("/"), PACKAGE_INDEX: package_url.rstrip("/")}
        self._wait = wait
        self._pages: dict[str, list[Link]] = {}

    def links(self, wanted: Wanted) -> list[Link]:
        """What the project's page offers; each page is read once."""
        kind = PACKAGE_INDEX if wanted.index == PACKAGE_INDEX else TORCH_INDEXES
        url = f"{self._urls[kind]}{wanted.index[len(kind) :]}/{wanted.project}/"
        if url not in self._pages:
            self._pages[url] = self._patiently(url, lambda: self._page(url))
        return self._pages[url]

    def take(self, link: Link, store: t.Callable[[Offer], T]) -> T:
        """Hand the wheel's bytes to `store`; what breaks off is begun again."""

        def once() -> T:
            with contextlib.closing(self._open(link.url)) as answer:
                length = answer.headers.get("Content-Length")
                return store(Offer(_reader(answer), int(length) if length else None))

        return self._patiently(link.url, once)

    def _page(self, url: str) -> list[Link]:
        with contextlib.closing(self._open(url, {"Accept": _ACCEPT})) as answer:
            text = _reader(answer)(_PAGE_LIMIT).decode("utf-8", "replace")
            return read_page(text, answer.headers.get("Content-Type") or "", answer.geturl())

    def _open(self, url: str, headers: t.Mapping[str, str] | None = None) -> t.Any:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise MirrorError(f"{hide_credentials(url)} is no URL of a web server")
        plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        request = urllib.request.Request(plain, headers={"User-Agent": "gpufleet-wheel-mirror", **(headers or {})})  # noqa: S310
        credentials = self._credentials(url)
        if credentials:
            # Not for the server that this one may redirect to.
            request.add_unredirected_header("Authorization", f"Basic {credentials}")
        return urllib.request.build_opener().open(request, timeout=STALLED)  # http and https only, see above

    def _credentials(self, url: str) -> str:
        """Those of the index on the same server: links on its pages do not repeat them."""
        place = _server(url)
        for candidate in (url, *self._urls.values()):
            parts = urlsplit(candidate)
            if parts.username and _server(candidate) == place:
                text = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                return base64.b64encode(text.encode("utf-8")).decode("ascii")
        return ""

    def _patiently(self, url: str, once: t.Callable[[], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return once()
            except urllib.error.HTTPError as error:
                why = f"it answers {error.code} {error.reason}"
                passing = error.code >= 500 or error.code == 429
            except urllib.error.URLError as error:
                why, passing = str(error.reason), True
            except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
                why, passing = str(error) or type(error).__name__, True
            except Truncated as error:
                why, passing = str(error), True
            if attempt == ATTEMPTS or not passing:
                break
            self._wait(2.0**attempt)
        raise MirrorError(
            f"{hide_credentials(url)} cannot be fetched: {why}. Check the URL, the network, and the proxy "
            "(gpufleet_proxy) of the mirror's host"
        )


def _server(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _reader(answer: t.Any) -> t.Callable[[int], bytes]:
    """Reading a network answer fails as a network error, never as one of the disk that the bytes go to."""

    def read(count: int) -> bytes:
        try:
            return t.cast(bytes, answer.read(count))
        except OSError as error:
            raise Truncated(f"the connection broke: {error}") from error

    return read


class Folder:
    """Wheels below a folder, of any source: their hashes decide."""

    def __init__(self, path: str) -> None:
        if not os.path.isdir(path):
            raise MirrorError(
                f"{path} is no folder on this host. Name the folder with the wheels in wheel_mirror_directory"
            )
        self._files: dict[str, list[str]] = {}
        self._hashes: dict[str, str] = {}
        for folder, _folders, names in os.walk(path):
            for name in sorted(names):
                if name.endswith(".whl"):
                    self._files.setdefault(normalized(name.split("-")[0]), []).append(os.path.join(folder, name))

    def links(self, wanted: Wanted) -> list[Link]:
        """The project's wheels, each with the hash that it really has."""
        found = []
        for path in self._files.get(wanted.project, []):
            if path not in self._hashes:
                self._hashes[path] = sha256_of(path)
            found.append(Link(os.path.basename(path), path, self._hashes[path]))
        return found

    def take(self, link: Link, store: t.Callable[[Offer], T]) -> T:
        """Hand the wheel's bytes to `store`."""
        with open(link.url, "rb") as file:
            return store(Offer(file.read, os.fstat(file.fileno()).st_size))
