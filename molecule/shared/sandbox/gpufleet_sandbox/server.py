# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves a folder over HTTP and HTTPS: ranges, conditional requests, kept-alive connections. Runs in a container of its own.

Standard library only; a wheel of 900 MB goes out through sendfile(2).
"""

from __future__ import annotations

import os
import re
import ssl
import sys
import threading
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any


class Handler(SimpleHTTPRequestHandler):
    """Files, single byte ranges, index.html for folders; never a listing, never anything hidden."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    _range: tuple[int, int] | None = None

    def do_GET(self) -> None:
        """Send a file or the part of it that was asked for."""
        file = self.send_head()
        if file is None:
            return
        with file:
            offset, count = self._range or (0, os.fstat(file.fileno()).st_size)
            self.wfile.flush()
            if count and self.connection.sendfile(file, offset, count) != count:
                self.close_connection = True

    def send_head(self) -> IO[bytes] | None:
        """As the base class does, with ranges: a partial answer has its own status and length."""
        self._range = None
        if re.search(r"/\.[^./]", self.path):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        path = self.translate_path(self.path)
        if not wanted or wanted.groups() == ("", "") or not os.path.isfile(path):
            return super().send_head()
        file = open(path, "rb")  # noqa: SIM115  # the caller closes it
        size = os.fstat(file.fileno()).st_size
        first, last = wanted.groups()
        begin = int(first) if first else max(size - int(last), 0)
        end = min(int(last), size - 1) if first and last else size - 1
        if begin > end:
            file.close()
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self._range = (begin, end - begin + 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        self.send_header("Content-Length", str(end - begin + 1))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", self.date_time_string(int(os.fstat(file.fileno()).st_mtime)))
        self.end_headers()
        return file

    def end_headers(self) -> None:
        """Say in every answer that ranges work."""
        if self._range is None:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def list_directory(self, path: str) -> None:  # type: ignore[override]
        """A folder without a page does not exist."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the base class's name
        """One line a request into the container's log."""
        print(self.address_string(), format % arguments, flush=True)


def main(folder: str, certificate: str) -> None:
    """Serve over HTTP, and over HTTPS with a certificate of the sandbox's own authority, until the container stops."""

    def handler(*arguments: Any) -> Handler:
        return Handler(*arguments, directory=folder)

    ThreadingHTTPServer.daemon_threads = True
    secure = ThreadingHTTPServer(("", 443), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=secure.serve_forever, daemon=True).start()
    ThreadingHTTPServer(("", 80), handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
