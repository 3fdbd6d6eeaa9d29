"""Which requests the page answers: by host, origin and token.

Without a token anyone who can connect is served, so the server must then be on loopback, and the `Host` header must
name it: a page of another site whose name resolves to this machine (DNS rebinding) sends its own name. Requests that
change something must come from the page itself.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Bytes of a request that is not an upload.
_MAX_BODY = 65_536
_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Guard:
    """An ASGI application that refuses requests before `app` sees them, and adds headers to all responses.

    Args:
        app: the application.
        token: required of every request, as `?token=` once, then as a cookie; None on loopback.
        uploads: path of uploads, whose size the application limits.
        host: the name at which the user opens the page, in addition to localhost and addresses of loopback.
    """

    def __init__(self, app: Any, *, token: str | None, uploads: str, host: str = "localhost") -> None:
        self.app, self.token, self.uploads = app, token, uploads
        self.names = {"localhost", host.lower()}
        # Cookies are shared by all ports of a host, so each server has its own.
        self.cookie = f"fewtokens_{sha256((token or '').encode()).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                more = [(name.encode(), text.encode()) for name, text in _HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in more if pair[0] not in present)]
            await send(message)

        status, text, more = self._check(scope, headers)
        if status:
            body = text.encode()
            plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
            await answer({"type": "http.response.start", "status": status, "headers": [*plain, *more]})
            await answer({"type": "http.response.body", "body": body})
        else:
            await self.app(scope, receive, answer)

    def _check(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        """Returns status, text and headers of a refusal; status 0 if the request is answered."""
        host = headers.get("host", "")
        if self.token is None and host_name(host) not in self.names and not is_loopback(host_name(host).strip("[]")):
            return 403, "open this page as http://127.0.0.1 or http://localhost, with its port", []
        if headers.get("sec-fetch-site") == "cross-site" and scope["path"] != "/":
            return 403, "this page answers no requests of other sites", []
        if scope["method"] not in ("GET", "HEAD"):
            if headers.get("origin", f"http://{host}") not in (f"http://{host}", f"https://{host}"):
                return 403, "this page answers no requests of other sites", []
            size = headers.get("content-length", "0" if scope["method"] == "DELETE" else "")
            if scope["path"] != self.uploads and not (size.isdecimal() and int(size) <= _MAX_BODY):
                return 413, "the request is too large", []
        if self.token is None:
            return 0, "", []
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and given and self._is_token(given):
            cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            return 303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode())]
        # Not by http.cookies, which stops at the first cookie that is not valid, such as one of another program.
        for pair in headers.get("cookie", "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == self.cookie and self._is_token(value):
                return 0, "", []
        return 401, "open the address with ?token= that fewtokens page printed", []

    def _is_token(self, text: str) -> bool:
        assert self.token is not None
        return hmac.compare_digest(text.encode(), self.token.encode())


def host_name(host: str) -> str:
    """Returns the name in a `Host` header, without the port: "[::1]" of "[::1]:80"."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()


def is_loopback(address: str) -> bool:
    """Whether this is an IP address that only this machine can reach; False for names, which anyone can register."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
