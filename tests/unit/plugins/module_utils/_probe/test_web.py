"""An index that does not answer is found out, with the reason, within the limit."""

from __future__ import annotations

import http.server
import socket
import ssl
import subprocess
import threading
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import web


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path names; /auth wants ada:secret."""

    def do_HEAD(self):
        status = 200
        if self.path == "/auth":
            status = 200 if self.headers["Authorization"] == "Basic YWRhOnMzY3I6dA==" else 401
        elif self.path.strip("/").isdigit():
            status = int(self.path.strip("/"))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_arguments):
        return


@pytest.fixture(scope="module")
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{made.server_port}"
    made.shutdown()


@pytest.mark.parametrize(
    ("path", "usable"), [("200", True), ("405", True), ("404", False), ("403", False), ("503", False)]
)
def test_status_decides(server, path, usable):
    url = f"http://{server}/{path}"
    answer = web.answers([url], 5)[url]
    assert answer["status"] == int(path)
    assert (answer["error"] is None) == usable
    if not usable:
        assert path in answer["error"]


def test_account_in_the_address_is_sent_and_not_repeated(server):
    right, wrong = f"http://ada:s3cr%3At@{server}/auth", f"http://ada:wrong@{server}/auth"
    answers = web.answers([right, wrong], 5)
    assert answers[right]["error"] is None
    assert answers[wrong]["status"] == 401
    assert "wrong" not in answers[wrong]["error"]


def test_closed_port_and_unknown_name_are_told_apart_from_an_answer():
    closed, unknown = "http://127.0.0.1:9/", "http://no-such-host.invalid/"
    answers = web.answers([closed, unknown], 5)
    assert "refused" in answers[closed]["error"]
    assert answers[unknown]["error"]
    assert answers[closed]["status"] is answers[unknown]["status"] is None


def test_server_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        started = time.monotonic()
        answer = web.answers([url], 1)[url]
    assert time.monotonic() - started < 4
    assert answer["status"] is None
    assert answer["error"]


def test_password_is_not_sent_to_a_server_whose_certificate_is_wrong(tmp_path):
    key, seen = tmp_path / "server.pem", []
    subject = ["-subj", "/CN=localhost", "-days", "1", "-nodes", "-newkey", "rsa:2048", "-x509"]
    subprocess.run(["openssl", "req", *subject, "-keyout", key, "-out", key], check=True, capture_output=True)

    class Recorder(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            seen.append(self.headers["Authorization"])
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_arguments):
            return

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(key)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    url = f"https://ada:secret@127.0.0.1:{made.server_port}/"
    answer = web.answers([url], 5)[url]
    made.shutdown()
    assert seen == [None]
    assert answer == {"status": 401, "error": None}
