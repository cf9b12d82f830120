"""MLflow's own server for one model, with a check of each request before MLflow reads it.

Usage::

    MLFLOW_TRACKING_URI=... .venv/bin/python docs/serve_checked.py models:/MODEL@production PORT

/invocations answers as `mlflow models serve`, /probabilities/invocations with the probability of
each class of the model (false count, real stem), where it knows any. What that server fails on with
status 500 because it cannot read it is refused with 400: JSON that is nested too deeply, numbers of
thousands of digits, no Content-Type. A body of more than MAX_BODY_BYTES is refused with 413 and not
read.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn
from mlflow.pyfunc import PyFuncModel, scoring_server

MAX_BODY_BYTES = 50_000_000
PROBABILITIES = "/probabilities"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that MLflow does not get to see: the status, and why."""


async def body_of(receive: Receive) -> bytes:
    """Return the body of a request; stop reading where it is too large."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request ended too early")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, f"at most {MAX_BODY_BYTES} bytes are read")
    return bytes(body)


def check(headers: dict[bytes, bytes], body: bytes) -> None:
    """Refuse what MLflow's reading would fail on; what it refuses itself is left to it."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if not kind:
        raise Refused(400, "the request has no Content-Type")
    if kind == b"application/json":
        try:
            json.loads(body)
        except (json.JSONDecodeError, UnicodeDecodeError):
            pass
        except RecursionError as error:
            raise Refused(400, "the JSON is nested too deeply") from error
        except ValueError as error:
            raise Refused(400, f"the JSON cannot be read: {error}") from error


class Checked:
    """An ASGI app that checks each request before another app gets it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        try:
            body = await body_of(receive)
            await asyncio.to_thread(check, dict(scope["headers"]), body)
        except Refused as refused:
            return await refuse(send, *refused.args)
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def read_before() -> Message:
            return parts.pop() if parts else await receive()

        return await self.app(scope, read_before, send)


async def refuse(send: Send, status: int, why: str) -> None:
    """Answer as MLflow does: a JSON object with the reason in `message`."""
    answer = json.dumps({"error_code": "BAD_REQUEST", "message": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class WithProbabilities:
    """An ASGI app with another one below /probabilities, which answers by `predict_proba`."""

    def __init__(self, model: PyFuncModel) -> None:
        self.app = scoring_server.init(model)
        raw = model.get_raw_model()
        self.probabilities = None
        if hasattr(raw, "predict_proba"):
            knowing = PyFuncModel(model.metadata, raw, predict_fn="predict_proba")
            self.probabilities = scoring_server.init(knowing)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand a request on to the app of its path."""
        path = scope.get("path", "")
        if self.probabilities is None or not path.startswith(f"{PROBABILITIES}/"):
            return await self.app(scope, receive, send)
        below = {**scope, "path": path.removeprefix(PROBABILITIES), "raw_path": None}
        return await self.probabilities(below, receive, send)


def main(model_uri: str, port: str) -> None:
    """Serve on 127.0.0.1 until a signal comes."""
    app = WithProbabilities(scoring_server.load_model_with_mlflow_config(model_uri))
    uvicorn.run(Checked(app), host="127.0.0.1", port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
