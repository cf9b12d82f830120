"""Run a command when an MLflow server says, signed, that production changed. Needs no package.

Usage::

    WEBHOOK_SECRET=... python3 webhook_receiver.py PORT MODEL COMMAND [ARGUMENT ...]

Listens on 127.0.0.1: put a web server with https in front. The command gets MLflow's message as
JSON on standard input, and never the secret. Only a failed command is answered with 500, so that
MLflow sends again. What was done is kept in a small file beside this one, or where WEBHOOK_STATE
says, so that a message is not obeyed again after a restart.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MAX_AGE_SECONDS = 300
COMMAND_SECONDS = 20  # MLflow waits 30 s for the answer
RECEIVE_SECONDS = 5  # for a whole message, however it drips
MAX_BODY_BYTES = 100_000
MAX_CLIENTS = 32
EVENT = ("model_version_alias", "created", "production")


class Refused(Exception):
    """A message that is not obeyed: the status of the answer, and why."""


def check(headers: Message, body: bytes, secret: str, now: float) -> tuple[str, int]:
    """Return identity and time of a fresh message of MLflow's; anything else is refused."""
    names = ("X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature")
    identity, sent, signature = (str(headers.get(name, "")) for name in names)
    signed = f"{identity}.{sent}.".encode(errors="replace") + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    if not hmac.compare_digest(signature.encode(errors="replace"), expected):
        raise Refused(401, "wrong signature")
    if not re.fullmatch(r"[!-~][ -~]{0,199}", identity) or not re.fullmatch(r"[0-9]{1,12}", sent):
        raise Refused(400, "no delivery id, or no time")
    if abs(now - int(sent)) > MAX_AGE_SECONDS:
        raise Refused(401, "too old")
    return identity, int(sent)


def event_of(body: bytes) -> tuple[str, str, str, str]:
    """Return entity, action, alias and name of the model."""
    try:
        message: Any = json.loads(body)
        data = message["data"]
        found = (message["entity"], message["action"], data.get("alias", ""), data.get("name", ""))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise Refused(400, "no message of MLflow's") from error
    if not all(isinstance(one, str) for one in found):
        raise Refused(400, "no message of MLflow's")
    return found


class Done:
    """Deliveries that were obeyed, as long as their signature is fresh: id -> when signed."""

    def __init__(self, path: Path) -> None:
        self.path, self.sent = path, dict[str, int]()
        try:
            kept = json.loads(path.read_bytes())
            self.sent = {str(identity): int(sent) for identity, sent in kept.items()}
        except FileNotFoundError:
            pass
        except (ValueError, ArithmeticError, AttributeError, TypeError, RecursionError):
            print(f"{path} is damaged and begun again", file=sys.stderr)
        self.save()  # whoever cannot keep it learns so at the start

    def add(self, identity: str, sent: int) -> None:
        """Remember one, forget those that are too old to be accepted."""
        oldest = time.time() - MAX_AGE_SECONDS
        self.sent = {one: at for one, at in self.sent.items() if at >= oldest} | {identity: sent}
        self.save()

    def save(self) -> None:
        """Write the file whole, for its owner alone."""
        new = self.path.with_name(self.path.name + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(new, flags, 0o600), "w") as file:
            json.dump(self.sent, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)


class Server(ThreadingHTTPServer):
    """A thread for each client, and only so many; one command at a time."""

    daemon_threads = True
    request_queue_size = MAX_CLIENTS

    def __init__(self, port: int, secret: str, model: str, command: list[str], done: Done) -> None:
        super().__init__(("127.0.0.1", port), Receiver)
        self.secret, self.model, self.command, self.done = secret, model, command, done
        self.clients, self.at_work = threading.Semaphore(MAX_CLIENTS), threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Wait until there is room: each client leaves after a few seconds."""
        self.clients.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Make room again."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.clients.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in one line that a client went away."""
        print(f"a client was lost: {sys.exc_info()[0]}", file=sys.stderr)


class Receiver(BaseHTTPRequestHandler):
    """Checks a message, then runs the command once for it."""

    server: Server
    timeout = RECEIVE_SECONDS

    def setup(self) -> None:
        """Start the clock: `timeout` alone begins anew with each byte."""
        super().setup()
        self.clock = threading.Timer(RECEIVE_SECONDS, self.hear_no_more)
        self.clock.daemon = True
        self.clock.start()

    def finish(self) -> None:
        """Stop the clock."""
        self.clock.cancel()
        super().finish()

    def hear_no_more(self) -> None:
        """End a message that takes too long; the client is still answered."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def do_POST(self) -> None:
        """Answer 204 if there is nothing left to do, 4xx if refused, 500 if the command failed."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]+", length):
            return self.send_error(411)
        if len(length) > len(str(MAX_BODY_BYTES)) or int(length) > MAX_BODY_BYTES:
            return self.send_error(413)
        body = self.rfile.read(int(length))
        self.clock.cancel()
        if len(body) < int(length):
            return self.send_error(408)
        try:
            identity, sent = check(self.headers, body, self.server.secret, time.time())
            is_ours = event_of(body) == (*EVENT, self.server.model)
        except Refused as refused:
            return self.send_error(*refused.args)
        self.send_response(204 if not is_ours or self.obey(body, identity, sent) else 500)
        return self.end_headers()

    def obey(self, body: bytes, identity: str, sent: int) -> bool:
        """Run the command unless it ran for this message; say whether it is done."""
        done = self.server.done
        with self.server.at_work:
            if identity in done.sent:
                return True  # a replay, or MLflow missed the answer
            try:
                subprocess.run(self.server.command, input=body, check=True, timeout=COMMAND_SECONDS)
            except subprocess.CalledProcessError as error:
                self.log_message("the command failed: exit status %d", error.returncode)
                return False
            except (OSError, subprocess.SubprocessError) as error:
                self.log_message("the command failed: %s", type(error).__name__)
                return False
            try:
                done.add(identity, sent)
            except OSError as error:
                self.log_message("%s cannot be written: %s", done.path, error.strerror)
        return True


def main(port: str, model: str, *command: str) -> None:
    """Serve until a signal comes."""
    beside = Path(__file__).with_name(f".webhook_receiver-{port}.json")
    path = Path(os.environ.get("WEBHOOK_STATE") or beside)
    # Not in the environment of the command.
    secret = os.environ.pop("WEBHOOK_SECRET")
    try:
        done = Done(path)
    except OSError as error:
        sys.exit(f"{path} cannot be written ({error.strerror}); set WEBHOOK_STATE to another file")
    Server(int(port), secret, model, list(command), done).serve_forever()


if __name__ == "__main__":
    if len(sys.argv) < 4 or not os.environ.get("WEBHOOK_SECRET"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
