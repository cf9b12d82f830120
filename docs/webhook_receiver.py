"""Run a command when an MLflow server says, signed, that production changed. Needs no package.

Usage::

    WEBHOOK_SECRET=... python3 webhook_receiver.py PORT MODEL COMMAND [ARGUMENT ...]

Listens on 127.0.0.1: put a web server with https in front. The command gets MLflow's message as
JSON on standard input. Only a failed command is answered with 500, so that MLflow sends again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
from collections import deque
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

MAX_AGE_SECONDS = 300
COMMAND_SECONDS = 20  # MLflow waits 30 s for the answer
MAX_BODY_BYTES = 100_000


def refusal(headers: Message, body: bytes, secret: str, now: float) -> str:
    """Say why a message is not a fresh one of MLflow's; empty if it is."""
    identity, sent = headers.get("X-MLflow-Delivery-Id", ""), headers.get("X-MLflow-Timestamp", "")
    signed = f"{identity}.{sent}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    signature = headers.get("X-MLflow-Signature", "").encode()
    if not hmac.compare_digest(signature, b"v1," + base64.b64encode(digest)):
        return "wrong signature"
    return "" if abs(now - int(sent)) <= MAX_AGE_SECONDS else "too old"


class Receiver(BaseHTTPRequestHandler):
    """Checks a message, then runs the command once for it."""

    timeout = 10  # one that sends nothing must not hold up the next
    done: ClassVar[deque[str]] = deque(maxlen=1000)  # ids of deliveries; all requests share it

    def do_POST(self) -> None:
        """Answer 204 if there is nothing left to do, 401 if refused, 500 if the command failed."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return self.send_error(413)
        body = self.rfile.read(int(length))
        reason = refusal(self.headers, body, os.environ["WEBHOOK_SECRET"], time.time())
        if reason:
            return self.send_error(401, reason)
        self.send_response(204 if self._obey(body) else 500)
        return self.end_headers()

    def _obey(self, body: bytes) -> bool:
        message, identity = json.loads(body), self.headers["X-MLflow-Delivery-Id"]
        event = f"{message['entity']}.{message['action']}"
        data, wanted = message["data"], {"name": sys.argv[2], "alias": "production"}
        if event != "model_version_alias.created" or not wanted.items() <= data.items():
            return True
        if identity in self.done:
            return True  # a replay, or MLflow missed the answer
        try:
            subprocess.run(sys.argv[3:], input=body, check=True, timeout=COMMAND_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            self.log_message("the command failed: %s", error)
            return False
        self.done.append(identity)
        return True


if __name__ == "__main__":
    if len(sys.argv) < 4 or not os.environ.get("WEBHOOK_SECRET"):
        sys.exit(__doc__)
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
