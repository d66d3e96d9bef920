# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A forward proxy: plain requests and CONNECT. Runs in a container between the fleet's server and hosts without another route.

Standard library only.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import sys
import urllib.request
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError, URLError

LIMIT = 60
HEADERS = ("Range", "If-Modified-Since", "If-Range", "Accept", "User-Agent")


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    timeout = LIMIT

    def do_CONNECT(self) -> None:
        """Open a tunnel and carry bytes both ways until one side ends."""
        self.close_connection = True
        host, _, port = self.path.rpartition(":")
        try:
            server = socket.create_connection((host.strip("[]"), int(port)), timeout=LIMIT)
        except (OSError, ValueError) as error:
            self.send_error(HTTPStatus.BAD_GATEWAY, str(error))
            return
        with server:
            self.send_response(HTTPStatus.OK, "Connection established")
            self.end_headers()
            ends = [self.connection, server]
            while ready := select.select(ends, [], [], LIMIT)[0]:
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[ends[0] is end].sendall(data)

    def do_GET(self) -> None:
        """Fetch what the client names in full, and pass it on."""
        headers = {name: self.headers[name] for name in HEADERS if self.headers[name]}
        request = urllib.request.Request(self.path, headers=headers, method=self.command)  # noqa: S310  # the sandbox's own server
        try:
            answer = urllib.request.urlopen(request, timeout=LIMIT)  # noqa: S310
        except HTTPError as error:
            answer = error
        except (URLError, ValueError) as error:
            self.send_error(HTTPStatus.BAD_GATEWAY, str(error))
            return
        with contextlib.closing(answer):
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Length", "Content-Range", "Last-Modified", "Accept-Ranges"):
                if answer.headers[name]:
                    self.send_header(name, answer.headers[name])
            if not answer.headers["Content-Length"]:
                self.send_header("Content-Length", "0")
            self.end_headers()
            if self.command == "GET":
                shutil.copyfileobj(answer, self.wfile)

    def do_HEAD(self) -> None:
        """The same without the content."""
        self.do_GET()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the base class's name
        """One line a request into the container's log: tests see there what came this way."""
        print(self.address_string(), format % arguments, flush=True)


if __name__ == "__main__":
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
