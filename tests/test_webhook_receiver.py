"""The receiver of docs/: what MLflow signed gets through, nothing else does."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from conftest import ROOT, free_port, make_home

OPERATIONS = ROOT / "docs" / "operations.md"
RECEIVER = ROOT / "docs" / "webhook_receiver.py"
MODEL = "StemClassifierPostprocessing"
SECRET = "a secret that both sides know"
PROMOTION: dict[str, Any] = {
    "entity": "model_version_alias",
    "action": "created",
    "timestamp": "2026-05-01T02:00:00+00:00",
    "data": {"name": MODEL, "alias": "production", "version": "2"},
}


@dataclass(frozen=True)
class Running:
    """A receiver at work; its command writes one line for each call."""

    address: str
    told: Path
    state: Path
    log: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What the command was told."""
        text = self.told.read_text() if self.told.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def send(self, message: bytes, headers: dict[str, str]) -> int:
        """Post a message; return the status of the answer."""
        request = urllib.request.Request(self.address, message, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


def start_receiver(folder: Path, command: str) -> Iterator[Running]:
    """Start a receiver whose command is a Python program; it ends with the test."""
    port, told, log = free_port(), folder / "told.jsonl", folder / "log"
    state = folder / "state.json"
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, RECEIVER, str(port), MODEL, sys.executable, "-c", command, told],
            env={**os.environ, "WEBHOOK_SECRET": SECRET, "WEBHOOK_STATE": str(state)},
            stderr=errors,
        )
    try:
        running = Running(f"http://127.0.0.1:{port}", told, state, log)
        for _ in range(100):
            with contextlib.suppress(urllib.error.URLError):
                running.send(b"", {})
                break
            time.sleep(0.1)
        yield running
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=10)


NOTE = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Running]:
    """Give a receiver whose command notes what it is told."""
    yield from start_receiver(tmp_path, NOTE)


@pytest.fixture
def failing_receiver(tmp_path: Path) -> Iterator[Running]:
    """Give a receiver whose command fails the first time."""
    once = (
        "import pathlib, sys; told = pathlib.Path(sys.argv[1]); new = not told.exists()\n"
        "told.open('a').write(sys.stdin.read() + '\\n'); sys.exit(new)"
    )
    yield from start_receiver(tmp_path, once)


def signed(message: bytes, *, age: float = 0, secret: str = SECRET) -> dict[str, str]:
    """Return the headers that MLflow's own function gives a message."""
    from mlflow.webhooks.delivery import _generate_hmac_signature

    sent = str(int(time.time() - age))
    return {
        "Content-Type": "application/json",
        "X-MLflow-Delivery-Id": "delivery 1",
        "X-MLflow-Timestamp": sent,
        "X-MLflow-Signature": _generate_hmac_signature(
            secret, "delivery 1", sent, message.decode()
        ),
    }


BODY = json.dumps(PROMOTION).encode()
REFUSED: dict[str, Callable[[], tuple[bytes, dict[str, str]]]] = {
    "another secret": lambda: (BODY, signed(BODY, secret="a guess")),
    "changed body": lambda: (BODY.replace(b'"2"', b'"1"'), signed(BODY)),
    "changed timestamp": lambda: (
        BODY,
        {**signed(BODY, age=400), "X-MLflow-Timestamp": str(int(time.time()))},
    ),
    "changed delivery": lambda: (BODY, {**signed(BODY), "X-MLflow-Delivery-Id": "delivery 2"}),
    "signed six minutes ago": lambda: (BODY, signed(BODY, age=360)),
    "signed in six minutes": lambda: (BODY, signed(BODY, age=-360)),
    "no signature": lambda: (BODY, {}),
    "signature beyond ASCII": lambda: (BODY, {**signed(BODY), "X-MLflow-Signature": "v1,\xe9"}),
    "another scheme": lambda: (
        BODY,
        {**signed(BODY), "X-MLflow-Signature": signed(BODY)["X-MLflow-Signature"][3:]},
    ),
}


class TestSignature:
    """Messages signed by MLflow's own function, and messages that only look like it."""

    def test_a_signed_promotion_runs_the_command_once(self, receiver: Running) -> None:
        """The command gets MLflow's message; the same one again is answered, not obeyed."""
        headers = signed(BODY)
        assert receiver.send(BODY, headers) == 204
        assert receiver.send(BODY, headers) == 204
        assert receiver.lines == [PROMOTION]

    @pytest.mark.parametrize("how", REFUSED)
    def test_anything_else_is_refused(self, how: str, receiver: Running) -> None:
        """With 401, and no command runs."""
        assert receiver.send(*REFUSED[how]()) == 401
        assert receiver.lines == []

    @pytest.mark.parametrize(
        "changed",
        [
            {"action": "deleted"},
            {"entity": "registered_model"},
            {"data": {**PROMOTION["data"], "alias": "previous_production"}},
            {"data": {**PROMOTION["data"], "name": "another"}},
        ],
    )
    def test_other_events_are_taken_quietly(
        self, changed: dict[str, Any], receiver: Running
    ) -> None:
        """MLflow need not send them again, and no command runs."""
        body = json.dumps({**PROMOTION, **changed}).encode()
        assert receiver.send(body, signed(body)) == 204
        assert receiver.lines == []

    def test_a_large_message_is_not_read(self, receiver: Running) -> None:
        """Nobody who does not know the secret fills the memory."""
        assert receiver.send(b"", {"Content-Length": "1000000000"}) == 413

    def test_a_failed_command_is_asked_for_again(self, failing_receiver: Running) -> None:
        """500 lets MLflow send the same message again, and then it counts as done."""
        headers = signed(BODY)
        assert [failing_receiver.send(BODY, headers) for _ in range(3)] == [500, 204, 204]
        assert len(failing_receiver.lines) == 2


def signed_anyhow(
    body: bytes, identity: str = "delivery 1", sent: str | None = None
) -> dict[str, str]:
    """Return headers with a right signature around anything."""
    sent = str(int(time.time())) if sent is None else sent
    digest = hmac.new(SECRET.encode(), f"{identity}.{sent}.".encode() + body, hashlib.sha256)
    return {
        "X-MLflow-Delivery-Id": identity,
        "X-MLflow-Timestamp": sent,
        "X-MLflow-Signature": "v1," + base64.b64encode(digest.digest()).decode(),
    }


def changed(**parts: Any) -> bytes:
    """Return the promotion with other parts."""
    return json.dumps({**PROMOTION, **parts}).encode()


NONSENSE: dict[str, tuple[bytes, dict[str, str]]] = {
    "no JSON": (b"{", {}),
    "nothing": (b"", {}),
    "no UTF-8": (b"\xff\xfe{}", {}),
    "a list": (b"[]", {}),
    "a number": (b"1", {}),
    "null": (b"null", {}),
    "deep": (b"[" * 50_000, {}),
    "deep and whole": (b"[" * 40_000 + b"]" * 40_000, {}),
    "5,000 digits": (b"1" * 5000, {}),
    "5,000 digits inside": (changed()[:-1] + b', "x": ' + b"1" * 5000 + b"}", {}),
    "no entity": (b'{"action": "created", "data": {}}', {}),
    "no data": (b'{"action": "created", "entity": "model_version_alias"}', {}),
    "data that is a list": (changed(data=[]), {}),
    "data that is a text": (changed(data="x"), {}),
    "data that is null": (changed(data=None), {}),
    "an entity that is a list": (changed(entity=[]), {}),
    "an action that is an object": (changed(action={}), {}),
    "a name that is a number": (changed(data={"name": 1, "alias": "production"}), {}),
    "an alias that is a list": (changed(data={"name": MODEL, "alias": ["production"]}), {}),
    "a time that is no number": (BODY, {"sent": "yesterday"}),
    "a time of 5,000 digits": (BODY, {"sent": "1" * 5000}),
    "a time below zero": (BODY, {"sent": "-1"}),
    "no time": (BODY, {"sent": ""}),
    "a time with a fraction": (BODY, {"sent": f"{time.time()}"}),
    "a time that is nan": (BODY, {"sent": "nan"}),
    "an id beyond ASCII": (BODY, {"identity": "delivery \xe9"}),
    "an endless id": (BODY, {"identity": "d" * 5000}),
    "no id": (BODY, {"identity": ""}),
}


@pytest.fixture(scope="module")
def one_receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Give a receiver for many messages that it must not obey."""
    yield from start_receiver(tmp_path_factory.mktemp("receiver"), NOTE)


class TestNonsense:
    """Whoever knows the secret, or a broken server, gets 400 and no traceback."""

    @pytest.mark.parametrize("how", NONSENSE)
    def test_signed_nonsense_is_refused(self, how: str, one_receiver: Running) -> None:
        """Never 500, which would ask for it again; no command runs."""
        body, headers = NONSENSE[how]
        assert one_receiver.send(body, signed_anyhow(body, **headers)) == 400
        assert one_receiver.lines == []
        assert "Traceback" not in one_receiver.log.read_text()

    @pytest.mark.parametrize("length", ["1" * 5000, "-1", "x", "1e3", "\xb2", "", " "])
    def test_a_length_that_is_none(self, length: str, one_receiver: Running) -> None:
        """It is refused before anything is read."""
        port = int(one_receiver.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            head = f"POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"
            client.sendall(head.encode("latin-1"))
            assert client.recv(1000).split()[1] in (b"400", b"411", b"413")

    @pytest.mark.parametrize(
        "head", [b"\x00\x1b[2J\r\n\r\n", b"POST\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"\r\n" * 9]
    )
    def test_what_is_no_request(self, head: bytes, one_receiver: Running) -> None:
        """Its log shows nothing that a terminal obeys, and it goes on."""
        port = int(one_receiver.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(head)
            client.shutdown(socket.SHUT_WR)
            client.recv(1000)
        assert one_receiver.send(BODY, {}) == 401
        assert "\x1b" not in one_receiver.log.read_text()


class TestClients:
    """One client does not hold up another, nor does it learn anything."""

    def test_a_slow_client_does_not_hold_up_the_next(self, receiver: Running) -> None:
        """Nor do ten that send nothing."""
        port = int(receiver.address.rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            began = time.monotonic()
            assert receiver.send(BODY, signed(BODY)) == 204
            assert time.monotonic() - began < 3

    @pytest.mark.sampled(0.5)
    @pytest.mark.slow
    @pytest.mark.parametrize("head", [b"", b"POST / HTTP/1.1\r\nContent-Length: 9999\r\n\r\n"])
    def test_a_byte_a_second_is_not_heard_for_ever(self, head: bytes, receiver: Running) -> None:
        """All clients that there is room for: after five seconds they are gone."""
        port = int(receiver.address.rpartition(":")[2])
        began = time.monotonic()
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
        for client in clients:
            client.sendall(head)

        def drip() -> None:
            while time.monotonic() - began < 30:
                for client in clients:
                    with contextlib.suppress(OSError):
                        client.sendall(b"x")
                time.sleep(0.5)

        threading.Thread(target=drip, daemon=True).start()
        while time.monotonic() - began < 25:
            with contextlib.suppress(OSError):
                if receiver.send(BODY, signed(BODY)) == 204:
                    break
        assert time.monotonic() - began < 18
        assert receiver.lines == [PROMOTION]
        for client in clients:
            client.close()

    def test_a_delivery_that_comes_twice_at_once_runs_the_command_once(
        self, tmp_path: Path
    ) -> None:
        """The second waits for the first, and learns how it ended."""
        slow = f"import time; time.sleep(0.5); {NOTE}"
        for receiver in start_receiver(tmp_path, slow):
            headers = signed(BODY)
            with ThreadPoolExecutor(5) as pool:
                answers = [pool.submit(receiver.send, BODY, headers) for _ in range(5)]
            assert [one.result() for one in answers] == [204] * 5
            assert receiver.lines == [PROMOTION]

    def test_a_replay_after_a_restart_does_not_run_the_command_again(self, tmp_path: Path) -> None:
        """What was done is in a file of its owner alone, as long as the signature is fresh."""
        headers, old = signed(BODY), signed_anyhow(BODY, "old", str(int(time.time() - 290)))
        for receiver in start_receiver(tmp_path, NOTE):
            assert [receiver.send(BODY, one) for one in (headers, old)] == [204, 204]
            kept = json.loads(receiver.state.read_text())
            assert kept == {"delivery 1": int(headers["X-MLflow-Timestamp"]), "old": ANY}
            assert stat.S_IMODE(receiver.state.stat().st_mode) == 0o600
            receiver.state.write_text(json.dumps({**kept, "very old": int(time.time() - 400)}))
        for receiver in start_receiver(tmp_path, NOTE):
            another = signed_anyhow(BODY, "another")
            assert [receiver.send(BODY, one) for one in (headers, old, another)] == [204] * 3
            assert receiver.lines == [PROMOTION] * 3
            assert set(json.loads(receiver.state.read_text())) == {"delivery 1", "old", "another"}

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"a": "x"}', b'{"a": 1e999}', b"[" * 9999])
    def test_a_damaged_file_is_begun_again(self, content: bytes, tmp_path: Path) -> None:
        """And said."""
        (tmp_path / "state.json").write_bytes(content)
        for receiver in start_receiver(tmp_path, NOTE):
            assert receiver.send(BODY, signed(BODY)) == 204
            assert "is damaged and begun again" in receiver.log.read_text()

    def test_a_file_that_cannot_be_written_is_told_at_the_start(self, tmp_path: Path) -> None:
        """In one line; a link in its place is not followed."""
        (tmp_path / "state.json.new").symlink_to(tmp_path / "victim")
        done = subprocess.run(
            [sys.executable, RECEIVER, str(free_port()), MODEL, "true"],
            env={"WEBHOOK_SECRET": SECRET, "WEBHOOK_STATE": str(tmp_path / "state.json")},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 1
        assert "set WEBHOOK_STATE to another file" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "victim").exists()

    def test_the_command_does_not_get_the_secret(self, tmp_path: Path) -> None:
        """It has the rest of the environment."""
        tell = (
            "import json, os, sys; open(sys.argv[1], 'a').write("
            "json.dumps({'names': sorted(os.environ), 'all': str(os.environ)}) + '\\n')"
        )
        for receiver in start_receiver(tmp_path, tell):
            assert receiver.send(BODY, signed(BODY)) == 204
            (told,) = receiver.lines
            assert "PATH" in told["names"]
            assert "WEBHOOK_SECRET" not in told["names"]
            assert SECRET not in told["all"]


@pytest.mark.slow
def test_a_real_server_tells_the_receiver(
    registered_template: Path,
    tmp_path: Path,
    settings_of: Callable[..., Any],
    free_server: Callable[..., str],
    receiver: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The webhook of docs/operations.md, a first registration, and the alias moved by hand.

    MLflow's two switches for http and for addresses that are not public are for tests only.
    """
    from cryptography.fernet import Fernet

    import register_first_model

    home = make_home(tmp_path / "home")
    for name in ("used_gts", "model"):
        shutil.copytree(registered_template / name, home / name, dirs_exist_ok=True)
    for name, value in {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }.items():
        monkeypatch.setenv(name, value)
    address = free_server(tmp_path / "server")
    (code,) = re.findall(r"```python\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
    code = code.replace("https://mlflow.example.org", address)
    code = code.replace("https://hooks.example.org/stems", f"{receiver.address}/stems")
    names: dict[str, Any] = {}
    exec(code.replace("the same long secret as the receiver's", SECRET), names)
    client = names["client"]
    register_first_model.register_first_model(settings_of(home, tracking_uri=address))
    wait_until(lambda: [one["data"]["version"] for one in receiver.lines] == ["1"])
    client.set_registered_model_alias(MODEL, "previous_production", "1")
    client.set_registered_model_alias(MODEL, "production", "1")
    wait_until(lambda: len(receiver.lines) == 2)
    assert {one["data"]["alias"] for one in receiver.lines} == {"production"}


def wait_until(true: Callable[[], bool]) -> None:
    """Wait at most 20 s."""
    for _ in range(200):
        if true():
            return
        time.sleep(0.1)
    raise TimeoutError("nothing came")
