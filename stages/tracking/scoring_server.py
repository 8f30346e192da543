"""MLflow's scoring server, guarded: what it cannot read gets status 400, and who has gone is no longer computed for.

`mlflow models serve` loads the model first and builds its web application afterwards, so the model puts the guard there.
"""

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import fastapi
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor, nn
from torch.nn import functional

LARGEST_BODY = 16 * 1024 * 1024
"""Bytes of a request."""

# What MLflow's reading of a request raises and does not catch: JSON nested too deep, integers of thousands of digits, a
# missing Content-Type. The model's own errors are answered by MLflow before they come here.
_UNREADABLE = (RecursionError, ValueError, TypeError, AttributeError, LookupError)

_ended: ContextVar[threading.Event | None] = ContextVar("ended", default=None)


class RequestEndedError(Exception):
    """Nobody waits for the answer any more: the client has gone, or the server gave up."""


class StoppableOutput(nn.Linear):
    """A model's output layer that stops the computation where nobody waits for it."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., V].

        Raises:
            RequestEndedError: the present request has ended.
        """
        event = _ended.get()
        if event is not None and event.is_set():
            raise RequestEndedError
        return functional.linear(x, self.weight, self.bias)


class GuardedFastAPI(FastAPI):
    """A web application with the guard."""

    def __init__(self, **options: Any) -> None:
        """Make the application."""
        super().__init__(**options)
        self.add_middleware(_RequestGuard)
        for kind in _UNREADABLE:
            self.add_exception_handler(kind, _answer_unreadable)


def guard_mlflow_server() -> None:
    """Have MLflow's server, which imports the class as it builds its application, build a guarded one."""
    fastapi.FastAPI = GuardedFastAPI  # type: ignore[misc]


async def _answer_unreadable(request: Request, error: Exception) -> JSONResponse:
    found = f"{type(error).__name__}: {error}"
    if isinstance(error, RecursionError):
        found = "JSON that is nested too deep"
    elif "content-type" not in request.headers:
        found = "no Content-Type"
    return _refusal(
        400, f"the request cannot be read: found {found}; allowed: the forms of docs/serve.md, with their Content-Type"
    )


def _refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error_code": "BAD_REQUEST", "message": message}, status)


class _RequestGuard:
    """ASGI middleware that reads the request, and afterwards watches whether its client is still there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await _read_body(receive)
        if body is None:
            answer = _refusal(413, f"the request is too large; allowed: at most {LARGEST_BODY:,} bytes")
            await answer(scope, receive, send)
            return
        ended = threading.Event()
        disconnected = asyncio.create_task(_wait_for_disconnect(receive, ended))
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await asyncio.shield(disconnected)

        _ended.set(ended)
        try:
            await self._app(scope, replay, send)
        finally:
            ended.set()
            disconnected.cancel()


async def _read_body(receive: Receive) -> bytes | None:
    """Return the whole request; None where it is too large, or its client has gone."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or len(body) > LARGEST_BODY:
            return None
        if not message.get("more_body"):
            return bytes(body)


async def _wait_for_disconnect(receive: Receive, ended: threading.Event) -> Message:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            ended.set()
            return message
