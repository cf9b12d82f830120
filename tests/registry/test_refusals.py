"""A server that refuses: one line that says why, exit 1; one that is down is tried later."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import make_home

from pipeline_orchestrator import main
from retraining.registry import refusals
from retraining.registry.store import as_pipeline_error
from retraining.settings import Settings

LOGIN = b"<!DOCTYPE html><html><body><form>Password:</form></body></html>"
pytestmark = pytest.mark.usefixtures("ten_seconds")


class Reply:
    """What a server says to everything but `/health` and `/login`."""

    def __init__(
        self, status: int, body: bytes = b"", kind: str = "text/html", to: str = ""
    ) -> None:
        self.status, self.body, self.kind, self.to = status, body, kind, to


def as_json(content: Any) -> bytes:
    """Return a body."""
    return json.dumps(content).encode()


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Give a starter of servers on loopback, with a certificate or without one."""
    servers = []

    def start(reply: Reply, certificate: Path | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                found = reply
                if self.path == "/health":
                    found = Reply(200, b"OK", "text/plain")
                elif self.path == "/login":
                    found = Reply(200, LOGIN)
                self.send_response(found.status)
                if found.to:
                    self.send_header("Location", found.to)
                self.send_header("Content-Type", found.kind)
                self.send_header("Content-Length", str(len(found.body)))
                self.end_headers()
                self.wfile.write(found.body)

            do_GET = do_POST = _answer  # noqa: N815 - their names there

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            one.socket = context.wrap_socket(one.socket, server_side=True)
            scheme = "https"
        threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(one)
        return f"{scheme}://localhost:{one.server_port}"

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a certificate that signs itself, with its key, or skip."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


def asked(address: str, home: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Ask for the status; return the exit status and the only line that was said."""
    status = main(["status", "--home", str(home), "--tracking-uri", address])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: the MLflow s"), lines
    assert address in lines[0]
    return status, lines[0]


TABLE = [
    (Reply(200, LOGIN), 1, "not as an MLflow server (a login page?)"),
    (Reply(302, to="/login"), 1, "not as an MLflow server (a login page?)"),
    (Reply(302, to="/again"), 1, "not as an MLflow server (a login page?)"),
    (Reply(200, b"welcome", "text/plain"), 1, "not as an MLflow server (a login page?)"),
    (Reply(200, b'{"cut off', "application/json"), 75, "not in a valid JSON"),
    (Reply(413, b"<html>Request Entity Too Large</html>"), 1, "client_max_body_size"),
    (Reply(401, LOGIN), 1, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    (Reply(403, LOGIN), 1, "does not allow this"),
    (Reply(403, as_json({"detail": "no"}), "application/json"), 1, "does not allow this"),
    (Reply(413, as_json({"message": "no"}), "application/json"), 1, "client_max_body_size"),
    (Reply(404, as_json({"detail": "Not Found"}), "application/json"), 1, "Not Found"),
    (Reply(404, b"<html>nothing here</html>"), 1, "error code 404"),
    (Reply(451, b"<html>court</html>"), 1, "refused with status 451"),
    (
        Reply(403, as_json({"error_code": "PERMISSION_DENIED", "message": "no"})),
        *(1, "refused: PERMISSION_DENIED: no"),
    ),
    (Reply(429, b"<html>slow down</html>"), 75, "too many 429"),
    (Reply(500, b"<html>oh</html>"), 75, "too many 500"),
    (Reply(503, as_json({"detail": "busy"}), "application/json"), 75, "too many 503"),
]


class TestServers:
    """Asked through the command line, as it is at night."""

    @pytest.mark.parametrize(("reply", "status", "words"), TABLE)
    def test_a_refusal_is_an_error_and_an_outage_is_tried_later(
        self,
        server: Callable[..., str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        reply: Reply,
        status: int,
        words: str,
    ) -> None:
        """Each in one line that says what to do."""
        found, line = asked(server(reply), make_home(tmp_path / "home"), capsys)
        assert (found, words in line) == (status, True), line

    def test_a_certificate_that_nobody_trusts(
        self,
        server: Callable[..., str],
        certificate: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Refused with what to set, which helps; also where its health is asked."""
        home, address = make_home(tmp_path / "home"), server(Reply(200, LOGIN), certificate)
        found, line = asked(address, home, capsys)
        assert found == 1
        assert "a certificate that is not accepted (self" in line
        name = line.rpartition(" ")[2]
        monkeypatch.setenv(name, str(certificate))
        assert "not as an MLflow server" in asked(address, home, capsys)[1]
        monkeypatch.setenv(name, str(tmp_path / "missing.pem"))
        assert main(["status", "--home", str(home), "--tracking-uri", address]) == 1
        assert f"mend {name}" in capsys.readouterr().err
        monkeypatch.delenv(name)
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        with pytest.warns(match="Unverified HTTPS request"):
            assert "not as an MLflow server" in asked(address, home, capsys)[1]

    def test_https_is_asked_of_what_speaks_http(
        self, server: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The other scheme is named."""
        address = server(Reply(200)).replace("http:", "https:")
        found, line = asked(address, make_home(tmp_path / "home"), capsys)
        assert found == 1
        assert "write http:// in --tracking-uri" in line


class TestTexts:
    """What only a text tells."""

    @pytest.mark.parametrize(
        ("text", "is_outage"),
        [
            ("(sqlite3.IntegrityError) UNIQUE constraint failed: runs.run_uuid", True),
            ("(psycopg.errors.UniqueViolation) duplicate key value", True),
            ("(psycopg2.errors.UniqueViolation) duplicate key value", True),
            ("(pymysql.err.IntegrityError) (1062, \"Duplicate entry 'x'\")", True),
            ("(psycopg.errors.NotNullViolation) null value in column", False),
        ],
    )
    def test_a_repeated_request_is_tried_later(
        self, tmp_path: Path, text: str, is_outage: bool
    ) -> None:
        """Whatever the database calls a row that is there already."""
        from mlflow.exceptions import BAD_REQUEST, MlflowException

        error = MlflowException(f"Background\n{text}\n[SQL: INSERT]", error_code=BAD_REQUEST)
        known = as_pipeline_error(error, Settings(home=tmp_path))
        assert known is not None
        assert known.exit_status == (75 if is_outage else 1)
        assert text in str(known)

    @pytest.mark.parametrize(
        ("text", "status"),
        [
            ("Registered Model (name=X) already exists. Error: (psycopg.errors.Unique", 75),
            ("Experiment(name=X) already exists in deleted state. You can restore it", 1),
        ],
    )
    def test_what_is_there_already(self, tmp_path: Path, text: str, status: int) -> None:
        """By a repeated request, or because a person deleted it."""
        from mlflow.exceptions import RESOURCE_ALREADY_EXISTS, MlflowException

        error = MlflowException(text, error_code=RESOURCE_ALREADY_EXISTS)
        known = as_pipeline_error(error, Settings(home=tmp_path))
        assert known is not None
        assert known.exit_status == status

    @pytest.mark.parametrize(
        "text",
        [
            'FATAL:  password authentication failed for user "mlflow"',
            'FATAL:  database "mlflow" does not exist',
            "FATAL:  no pg_hba.conf entry for host 10.0.0.1",
        ],
    )
    def test_a_database_that_refuses_its_client(self, text: str) -> None:
        """Not down: it says so every night."""
        assert refusals.database_in_words(Exception(f"connection failed:\n{text}")) == text
        assert refusals.database_in_words(Exception("connection refused")) == ""
