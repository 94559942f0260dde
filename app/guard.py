"""Who may talk to the server: browsers on its own pages, and users who know the password."""

from __future__ import annotations

import base64
import binascii
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Refuses requests from other sites' pages, under other names of this machine, and without the password.

    Args:
        app: The server.
        hosts: Names under which the server may be addressed; None for any.
        auth: User and password. Clients of the API give the password as bearer token (``api_key``).
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str] | None = None, auth: tuple[str, str] | None = None
    ) -> None:
        self._app, self._hosts, self._auth = app, hosts, auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers, str(scope.get("method", "GET")))
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await refusal(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, headers: Headers, method: str) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            return PlainTextResponse("This server is not addressed under that name.", 403)
        origin = headers.get("origin")
        if origin and method not in _READS and urlsplit(origin).netloc.lower() != host.lower():
            return PlainTextResponse("Requests of other sites' pages are not accepted.", 403)
        if self._auth is not None and not self._knows(headers.get("authorization", "")):
            return PlainTextResponse(
                "A user and a password are needed.", 401, {"WWW-Authenticate": 'Basic realm="tts-vision"'}
            )
        return None

    def _knows(self, authorization: str) -> bool:
        assert self._auth is not None
        kind, _, value = authorization.partition(" ")
        user, password = self._auth
        if kind.lower() == "bearer":
            return _same(value, password)
        if kind.lower() != "basic":
            return False
        try:
            given = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return False
        return _same(given, f"{user}:{password}")


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
