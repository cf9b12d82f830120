"""One deadline and one size limit around each exchange with a store, whatever it sends.

The time limits of HTTP and database clients count from one read to the next: a server that drips a
byte a second holds a call for ever, and one that never ends its answer fills the memory. Here a
watcher shuts a connection down when the time of its exchange is over, and an answer that is too
long is not read to its end. Both look like a lost connection to whoever waits: an outage.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from retraining.settings import Settings

SLOWEST_BYTES = 100_000
"""Of a second: so many give an upload or a download one second more."""
MOST_REPLY_BYTES = 100_000_000
PATIENCE = 20
"""So many times the limit of one call may a command wait in all."""


@dataclass
class _Limits:
    """What holds for each exchange, and how long this process has waited."""

    seconds: float
    most_bytes: float
    waited: float = 0.0
    n_bytes: int = 0


_limits = _Limits(seconds=30.0, most_bytes=2e9)
_of_thread = threading.local()


def bound(settings: Settings) -> None:
    """Bound every exchange of this process with a store, from now on; before MLflow connects."""
    _limits.seconds, _limits.most_bytes = settings.store_timeout, settings.max_model_mb * 1e6
    _limits.waited = 0.0
    _install()


@functools.cache
def _install() -> None:
    """Put the bounds where requests, urllib3 and SQLAlchemy pass, once for a process."""
    import sqlalchemy
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    for pool, connection in (
        (HTTPConnectionPool, HTTPConnection),
        (HTTPSConnectionPool, HTTPSConnection),
    ):
        pool.ConnectionCls = type(f"Watched{connection.__name__}", (_Watched, connection), {})
    HTTPAdapter.send = _bounded(HTTPAdapter.send)
    events: dict[str, Callable[..., None]] = {
        "before_cursor_execute": _query_begins,
        "after_cursor_execute": _query_ends,
        "commit": _transaction_ends,
        "rollback": _transaction_ends,
        "handle_error": _query_failed,
    }
    for name, listener in events.items():
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, name, listener)
    sqlalchemy.event.listen(sqlalchemy.pool.Pool, "checkin", _given_back)


# --- The watcher ---


class _Watcher:
    """Shuts connections down when their time is over."""

    def __init__(self) -> None:
        self._until: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self._changed = threading.Condition()
        self._is_awake = False

    def watch(self, connection: Any, until: float) -> None:
        """Give a connection its time; that of an earlier exchange is over with it."""
        with self._changed:
            self._until[connection] = until
            if not self._is_awake:
                self._is_awake = True
                threading.Thread(target=self._look, daemon=True).start()
            self._changed.notify()

    def forget(self, connection: Any) -> None:
        """Let a connection be."""
        with self._changed:
            self._until.pop(connection, None)

    def _look(self) -> None:
        with self._changed:
            while self._until:
                now = time.monotonic()
                for connection, until in [*self._until.items()]:
                    if until <= now:
                        del self._until[connection]
                        _shut_down(connection)
                first = min(self._until.values(), default=now)
                self._changed.wait(max(first - now, 0.01))
            self._is_awake = False


def _shut_down(connection: Any) -> None:
    """Wake whoever waits for a connection; it stays theirs to close."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        source = getattr(connection, "sock", connection)
        with socket.socket(fileno=os.dup(source.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)


_watcher = _Watcher()


# --- HTTP ---


@dataclass
class _Exchange:
    """One request and its answer, its retries included."""

    seconds: float
    begun: float = field(default_factory=time.monotonic)
    n_bytes: int = 0
    socket: Any = None

    @property
    def until(self) -> float:
        """When its time is over; later with all that comes."""
        return self.begun + self.seconds + self.n_bytes / SLOWEST_BYTES

    def check(self) -> None:
        """Refuse to go on when its time is over.

        Raises
        ------
        TimeoutError
            Of urllib3, as if the server were silent.
        """
        from urllib3.exceptions import ProtocolError

        if time.monotonic() > self.until:
            raise ProtocolError(f"no whole answer within {self.seconds:g} seconds")


class _Watched:
    """A connection whose requests have the time of the exchange that they belong to."""

    def request(self, *values: Any, **named: Any) -> Any:
        """Send a request; the time of its exchange runs already."""
        exchange = getattr(_of_thread, "exchange", None)
        if exchange is not None:
            exchange.check()
            exchange.socket = None
            _watcher.watch(self, exchange.until)
        return super().request(*values, **named)  # type: ignore[misc]

    def getresponse(self) -> Any:
        """Read the head of the answer; the socket outlives the connection that it came by."""
        exchange = getattr(_of_thread, "exchange", None)
        if exchange is not None:
            exchange.socket = self.sock  # type: ignore[attr-defined]
            _watcher.forget(self)
            _watcher.watch(exchange.socket, exchange.until)
        return super().getresponse()  # type: ignore[misc]


def _bounded(send: Callable[..., Any]) -> Callable[..., Any]:
    """Return `HTTPAdapter.send` with a deadline and a limit of the answer's size."""

    @functools.wraps(send)
    def send_bounded(adapter: Any, request: Any, stream: bool = False, **named: Any) -> Any:
        if _limits.waited > PATIENCE * _limits.seconds:
            from requests.exceptions import ConnectionError as Lost

            raise Lost(f"all its answers together took more than {_limits.waited:.0f} seconds")
        seconds = getattr(_of_thread, "seconds", _limits.seconds)
        for_upload = _length(request.body) / SLOWEST_BYTES
        exchange = _Exchange(seconds + for_upload)
        _of_thread.exchange = exchange
        try:
            response = send(adapter, request, stream=stream, **named)
        finally:
            _of_thread.exchange = None
            _limits.waited += max(time.monotonic() - exchange.begun - for_upload, 0.0)
        _of_thread.status = response.status_code
        response.raw.stream = _bounded_stream(response.raw, exchange, is_download=stream)
        return response

    return send_bounded


def _bounded_stream(
    answer: Any, exchange: _Exchange, *, is_download: bool
) -> Callable[..., Iterator[bytes]]:
    """Return a reader of an answer that stops at its limits."""
    from urllib3.exceptions import ProtocolError

    stream = answer.stream
    limit = _limits.most_bytes if is_download else MOST_REPLY_BYTES

    def read(*values: Any, **named: Any) -> Iterator[bytes]:
        begun = time.monotonic()
        try:
            for chunk in stream(*values, **named):
                exchange.n_bytes += len(chunk)
                _limits.n_bytes += len(chunk) * is_download
                if max(exchange.n_bytes, _limits.n_bytes * is_download) > limit:
                    raise ProtocolError(f"the answer is longer than {limit / 1e6:g} MB")
                exchange.check()
                if exchange.socket is not None:
                    _watcher.watch(exchange.socket, exchange.until)
                yield chunk
            exchange.check()
        except BaseException:
            answer.close()
            raise
        finally:
            if exchange.socket is not None:
                _watcher.forget(exchange.socket)
            waited = time.monotonic() - begun - exchange.n_bytes / SLOWEST_BYTES
            _limits.waited += max(waited, 0.0)

    return read


def _length(body: Any) -> int:
    """Return how long what is sent is; as for an upload in parts, nothing if nobody knows."""
    from requests.utils import super_len

    return int(super_len(body)) if body is not None else 0


def last_status() -> int | None:
    """Return the HTTP status of the last answer that this thread got."""
    return getattr(_of_thread, "status", None)


def begin_download() -> None:
    """Count what comes from now on: all files of a version together have one limit."""
    _limits.n_bytes = 0


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give the exchanges of this thread another time."""
    _of_thread.seconds = seconds
    try:
        yield
    finally:
        del _of_thread.seconds


# --- Databases ---


def _watch_driver(driver: Any) -> None:
    if hasattr(driver, "fileno"):  # SQLite has none, and a time limit of its own
        _watcher.watch(driver, time.monotonic() + _limits.seconds)


def _forget_driver(driver: Any) -> None:
    if hasattr(driver, "fileno"):
        _watcher.forget(driver)


def _query_begins(_connection: Any, cursor: Any, *_: Any) -> None:
    _watch_driver(getattr(cursor, "connection", None))


def _query_ends(_connection: Any, cursor: Any, *_: Any) -> None:
    _forget_driver(getattr(cursor, "connection", None))


def _transaction_ends(connection: Any) -> None:
    """Watch until the connection is given back, or asked again."""
    _watch_driver(connection.connection.dbapi_connection)


def _query_failed(context: Any) -> None:
    _forget_driver(getattr(getattr(context, "cursor", None), "connection", None))


def _given_back(driver: Any, _record: Any) -> None:
    _forget_driver(driver)
