"""The receiver of docs/: what MLflow signed gets through, nothing else does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    port, told = free_port(), folder / "told.jsonl"
    process = subprocess.Popen(
        [sys.executable, RECEIVER, str(port), MODEL, sys.executable, "-c", command, told],
        env={**os.environ, "WEBHOOK_SECRET": SECRET},
        stderr=subprocess.DEVNULL,
    )
    try:
        running = Running(f"http://127.0.0.1:{port}", told)
        for _ in range(100):
            with contextlib.suppress(urllib.error.URLError):
                running.send(b"", {})
                break
            time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Running]:
    """Give a receiver whose command notes what it is told."""
    note = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')"
    yield from start_receiver(tmp_path, note)


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
