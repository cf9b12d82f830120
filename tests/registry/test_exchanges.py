"""A store that never ends: drips, endless answers, long waits; each costs its time and no more."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retraining.errors import TryLaterError
from retraining.registry import exchanges, open_registry
from retraining.registry.store import as_pipeline_error
from retraining.settings import Settings

Answer = Callable[[socket.socket], None]
HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK"
BEGINNING = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
pytestmark = pytest.mark.usefixtures("ten_seconds")


def drip(peer: socket.socket, content: bytes) -> None:
    """Send a byte every fifth of a second: no read ever waits for long."""
    for byte in content:
        peer.sendall(bytes([byte]))
        time.sleep(0.2)


def drips_its_headers(peer: socket.socket) -> None:
    """Never come to the end of a line."""
    drip(peer, b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000)


def drips_its_body(peer: socket.socket) -> None:
    """Announce much and send it slowly."""
    peer.sendall(BEGINNING + b"Content-Length: 100000\r\n\r\n")
    drip(peer, b"{" * 1000)


def drips_a_body_of_unknown_length(peer: socket.socket) -> None:
    """As an old server whose answer ends with the connection."""
    peer.sendall(BEGINNING + b"Connection: close\r\n\r\n{")
    drip(peer, b" " * 1000)


def never_ends(peer: socket.socket) -> None:
    """Send as fast as can be."""
    peer.sendall(BEGINNING + b'Connection: close\r\n\r\n{"a": "')
    while True:
        peer.sendall(b"x" * 1_000_000)


def inflates(peer: socket.socket) -> None:
    """Send a little that becomes much."""
    import gzip

    body = gzip.compress(b" " * 200_000_000, compresslevel=9)
    head = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    peer.sendall(BEGINNING + head + body)


def asks_for_an_hour(peer: socket.socket) -> None:
    """Be busy, politely."""
    peer.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n")


HOSTILE = (
    *(drips_its_headers, drips_its_body, drips_a_body_of_unknown_length),
    *(never_ends, inflates, asks_for_an_hour),
)


@pytest.fixture
def server() -> Iterator[Callable[[Answer], str]]:
    """Give a starter of servers that are healthy, and answer everything else as they like."""
    listeners: list[socket.socket] = []

    def serve(listener: socket.socket, answer: Answer) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=reply, args=(peer, answer), daemon=True).start()

    def reply(peer: socket.socket, answer: Answer) -> None:
        with peer:
            try:
                asked = peer.recv(65536)
                if b"/health" in asked:
                    peer.sendall(HEALTHY)
                else:
                    answer(peer)
            except OSError:
                return

    def start(answer: Answer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, answer), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


def asked(settings: Settings) -> Exception:
    """Ask a store for production; return what came of it."""
    with pytest.raises(Exception) as caught:
        open_registry(settings).production.number()
    return caught.value


@pytest.mark.parametrize("answer", HOSTILE)
def test_a_hostile_server_costs_one_time_limit_and_is_tried_later(
    server: Callable[[Answer], str], tmp_path: Path, answer: Answer
) -> None:
    """Whoever answers for the store, in whatever way: the lock is free soon, exit status 75."""
    settings = Settings(home=tmp_path, tracking_uri=server(answer), store_timeout=1)
    begun = time.monotonic()
    known = as_pipeline_error(asked(settings), settings)
    assert isinstance(known, TryLaterError), known
    assert "\n" not in str(known)
    assert time.monotonic() - begun < 8


def test_a_health_page_that_drips_is_no_healthy_server(
    server: Callable[[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked first, and outside of MLflow."""
    monkeypatch.setattr(f"{__name__}.HEALTHY", b"")
    address = server(lambda _: None).replace("127.0.0.1", "me:secret@127.0.0.1")
    settings = Settings(home=tmp_path, tracking_uri=address, store_timeout=1)
    with pytest.raises(TryLaterError, match="does not answer") as caught:
        open_registry(settings)
    assert "secret" not in str(caught.value)


def test_many_slow_answers_are_no_way_around(
    server: Callable[[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each within its time: all together have one, too."""
    monkeypatch.setattr(exchanges, "PATIENCE", 1)

    def slow(peer: socket.socket) -> None:
        time.sleep(0.6)
        peer.sendall(BEGINNING + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}")

    settings = Settings(home=tmp_path, tracking_uri=server(slow), store_timeout=1)
    registry = open_registry(settings)
    with pytest.raises(Exception, match="all its answers together") as caught:
        for _ in range(5):
            registry.versions.model_exists()
    assert isinstance(as_pipeline_error(caught.value, settings), TryLaterError)


def test_a_large_answer_has_the_time_that_it_takes(
    server: Callable[[Answer], str], tmp_path: Path
) -> None:
    """What comes steadily is no drip: a second for each 100 kB."""
    import requests

    def steady(peer: socket.socket) -> None:
        peer.sendall(BEGINNING + b"Content-Length: 1000000\r\nConnection: close\r\n\r\n")
        for _ in range(10):
            peer.sendall(b"x" * 100_000)
            time.sleep(0.2)

    exchanges.bound(Settings(home=tmp_path, store_timeout=1))
    assert len(requests.get(server(steady), timeout=5).content) == 1_000_000


def test_a_database_that_falls_silent_is_left(tmp_path: Path) -> None:
    """Its driver waits in C: the connection is shut down under it."""
    exchanges.bound(Settings(home=tmp_path, store_timeout=1))
    ours, theirs = socket.socketpair()

    class Cursor:
        connection: Any = ours

    with ours, theirs:
        exchanges._query_begins(None, Cursor())
        begun = time.monotonic()
        assert ours.recv(1) == b""
        assert 0.5 < time.monotonic() - begun < 5
        exchanges._query_ends(None, Cursor())


def test_a_connection_that_is_used_again_keeps_its_new_time(tmp_path: Path) -> None:
    """Nobody is cut off by the deadline of an exchange that ended well."""
    exchanges.bound(Settings(home=tmp_path, store_timeout=1))
    ours, theirs = socket.socketpair()

    class Cursor:
        connection: Any = ours

    with ours, theirs:
        exchanges._query_begins(None, Cursor())
        exchanges._query_ends(None, Cursor())
        time.sleep(1.3)
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


@pytest.mark.slow
def test_a_large_upload_is_no_patience_of_the_server(
    server: Callable[[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second for each 100 kB is what it may take; the call after it has its own time."""
    import requests

    monkeypatch.setattr(exchanges, "PATIENCE", 1)

    def take(peer: socket.socket) -> None:
        time.sleep(1.5)
        peer.sendall(BEGINNING + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}")

    exchanges.bound(Settings(home=tmp_path, store_timeout=1))
    address = server(take)
    for _ in range(2):
        requests.post(address, data=b"x" * 200_000, timeout=5)


def test_many_files_of_one_version_have_one_limit(
    server: Callable[[Answer], str], tmp_path: Path
) -> None:
    """Each of them may be as large as a version: not all together."""
    import requests

    def give(peer: socket.socket) -> None:
        peer.sendall(BEGINNING + b"Content-Length: 60000\r\nConnection: close\r\n\r\n")
        peer.sendall(b"x" * 60_000)

    def download() -> int:
        with requests.get(address, timeout=5, stream=True) as answer:
            return len(answer.content)

    exchanges.bound(Settings(home=tmp_path, max_model_mb=0.1))
    address = server(give)
    exchanges.begin_download()
    assert download() == 60_000
    with pytest.raises(requests.RequestException, match=r"longer than 0\.1 MB"):
        download()
    exchanges.begin_download()
    assert download() == 60_000


def test_a_database_that_falls_silent_at_a_commit_is_left(tmp_path: Path) -> None:
    """There is no cursor then."""
    exchanges.bound(Settings(home=tmp_path, store_timeout=1))
    ours, theirs = socket.socketpair()

    class Pooled:
        dbapi_connection = ours

    class Connection:
        connection = Pooled()

    with ours, theirs:
        exchanges._transaction_ends(Connection())
        assert ours.recv(1) == b""
        exchanges._given_back(ours, None)
