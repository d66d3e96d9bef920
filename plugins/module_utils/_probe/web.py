# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Does a package index answer this host?

Asked before a plan is carried out, so that a host which cannot reach its index is left out before anything changes on it.
The host's proxy variables are honoured. Certificates are not judged, because uv brings its own roots and is strict with them; an
account is sent only where the certificate is right.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Sequence

from . import child
from .host import reason


def answers(urls: Sequence[str], time_limit: float) -> dict[str, dict[str, Any]]:
    """Return what each URL answers to a HEAD request: ``{status, error}``; error is None only below status 400.

    Each is asked in a child of its own, all at once, because looking up a name cannot be interrupted.
    """
    children = {url: child.start(partial(_ask, url, time_limit), time_limit) for url in urls}
    found: dict[str, dict[str, Any]] = {}
    for url, process in children.items():
        try:
            found[url] = process.answer()
        except Exception as error:  # whatever became of the child, the URL did not answer
            found[url] = {"status": None, "error": reason(error)}
    return found


def _ask(url: str, time_limit: float) -> dict[str, Any]:
    import base64
    import ssl
    import urllib.error
    import urllib.parse
    import urllib.request

    def head(headers: dict[str, str], context: ssl.SSLContext) -> dict[str, Any]:
        request = urllib.request.Request(address, headers=headers, method="HEAD")  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        try:
            with opener.open(request, timeout=time_limit) as response:
                return {"status": response.status, "error": None}
        except urllib.error.HTTPError as error:
            without_head = error.code in (405, 501)  # a server that does not know HEAD is there all the same
            return {"status": error.code, "error": None if without_head else f"it answers {error.code} {error.reason}"}

    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return {"status": None, "error": "only http and https addresses can be asked"}
    account, _at, server = parts.netloc.rpartition("@")
    address = urllib.parse.urlunsplit(parts._replace(netloc=server))
    unjudged = ssl.create_default_context()
    unjudged.check_hostname = False
    unjudged.verify_mode = ssl.CERT_NONE
    try:
        if not account:
            return head({}, unjudged)
        words = base64.b64encode(urllib.parse.unquote(account).encode()).decode()
        try:
            return head({"Authorization": f"Basic {words}"}, ssl.create_default_context())
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLCertVerificationError):
                raise
            # A password goes to nobody unknown: without it, being asked for one is answer enough.
            answer = head({}, unjudged)
            return {**answer, "error": None} if answer["status"] in (401, 403) else answer
    except (OSError, ValueError) as error:
        return {"status": None, "error": str(getattr(error, "reason", error))}
