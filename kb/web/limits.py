"""What a request may cost: size of its body, time to send it, time to answer, how many at once. Plus headers.

Pure ASGI middleware: the body is counted while it comes in, so that a body without a length is bounded too.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Mapping[bytes, bytes] = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Limits:
    """Bounds of one server."""

    body: int = 1_048_576
    """Bytes of a request's body."""
    upload_seconds: float = 10.0
    """In which the whole body must have come in."""
    answer_seconds: float = 10.0
    """In which the answer must begin."""
    at_once: int = 64
    """Requests in progress; further ones are told to come again."""


class Refused(Exception):  # noqa: N818
    """A request that is not served: status, what to say, and further headers."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


class Guard:
    """Applies limits, the token and the headers of every response."""

    def __init__(self, app: ASGIApp, limits: Limits, token: str | None, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._limits = limits
        self._token = token
        self._hosts = hosts
        """Names that a browser may know us by; None takes any. Keeps foreign pages from asking through DNS tricks."""
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        head = scope["method"] == "HEAD"
        if head:  # answered as GET, without the body
            scope = {**scope, "method": "GET"}

        async def answer(message: Message) -> None:
            nonlocal started
            if head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                started = True
                known = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((k, v) for k, v in _HEADERS.items() if k not in known)]
            await send(message)

        try:
            self._admit(scope)
            self._running += 1
            try:
                body = await self._body(scope, receive)
                await asyncio.wait_for(self._app(scope, body, answer), self._limits.answer_seconds)
            finally:
                self._running -= 1
        except Refused as refused:
            if not started:
                await _refuse(answer, refused)
        except TimeoutError:
            if not started:
                await _refuse(answer, Refused(503, "the answer took too long", {"Retry-After": "5"}))

    def _admit(self, scope: Scope) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1").rsplit("]")[0].lstrip("[")
            name = host if ":" in host and host.count(":") > 1 else host.partition(":")[0]
            if name not in self._hosts:
                raise Refused(421, "this server is not known by that name")
        if self._token is not None and scope["path"] != "/healthz" and not _knows(headers, self._token):
            challenge = 'Basic realm="provenfix", charset="UTF-8"'
            raise Refused(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": challenge})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Refused(400, "Content-Length is not a number")
        if int(length) > self._limits.body:
            raise self._too_large()
        if self._running >= self._limits.at_once:
            raise Refused(503, "too many requests at once", {"Retry-After": "1"})

    def _too_large(self) -> Refused:
        return Refused(413, f"the body may have {self._limits.body} bytes; use `kb match` for a larger log")

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        """The body, read whole within size and time, to be given again."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.upload_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the request was broken off")
                    size += len(message.get("body", b""))
                    if size > self._limits.body:
                        raise self._too_large()
                    pieces.append(message.get("body", b""))
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise Refused(408, "the body came too slowly") from None
        whole: list[Message] = [{"type": "http.request", "body": b"".join(pieces), "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again


def _knows(headers: Mapping[bytes, bytes], token: str) -> bool:
    """Bearer for programs; Basic with the token as password for browsers."""
    kind, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() == "basic":
        try:
            given = b64decode(given, validate=True).decode("utf-8").partition(":")[2]
        except ValueError:
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), token.encode())


async def _refuse(send: Send, refused: Refused) -> None:
    body = json.dumps({"detail": refused.detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
