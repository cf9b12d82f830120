"""Serve the production version with MLflow, and the next one soon after the alias has moved.

Usage::

    MLFLOW_TRACKING_URI=... .venv/bin/python docs/serve_production.py MODEL PORT [SECONDS]

Asks for the alias every SECONDS (30). A store that does not answer changes nothing. Between the old
version and the new one nobody answers for about as long as a start takes, 5 to 10 seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow

SERVER = Path(__file__).with_name("serve_checked.py")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def production(model: str, otherwise: str) -> str:
    """Return the number of the version in production, or another if the store does not say."""
    try:
        return str(mlflow.MlflowClient().get_model_version_by_alias(model, "production").version)
    except mlflow.MlflowException as error:
        # A server's text: its repr moves no cursor and forges no line.
        print(f"the store did not say what is in production: {str(error)!r}", file=sys.stderr)
        return otherwise


def start(model: str, version: str, port: str) -> subprocess.Popen[bytes]:
    """Start MLflow's server, behind the check of serve_checked.py, for one version."""
    print(f"serving version {version}", file=sys.stderr)
    return subprocess.Popen(
        [sys.executable, SERVER, f"models:/{model}/{version}", port], start_new_session=True
    )


def stop(server: subprocess.Popen[bytes] | None) -> None:
    """End a server with everything that it started."""
    if server is not None and server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def end(*_: object) -> None:
    """End this program; a second signal must not interrupt the end of the server."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit()


def check_store() -> None:
    """Refuse a database that is not there: MLflow would create an empty one."""
    kind, _, path = mlflow.get_tracking_uri().partition(":///")
    if kind == "sqlite" and not Path(path).exists():
        sys.exit(f"there is no store {path}; mend MLFLOW_TRACKING_URI")


def main(model: str, port: str, seconds: str = "30") -> None:
    """Serve until a signal comes."""
    check_store()
    for number in SIGNALS:
        signal.signal(number, end)
    served, server = "", None
    try:
        while True:
            version = production(model, otherwise=served)
            ended = server is not None and server.poll() is not None
            if version and (version != served or ended):
                stop(server)
                server, served = start(model, version, port), version
            time.sleep(float(seconds))
    finally:
        stop(server)


if __name__ == "__main__":
    main(*sys.argv[1:])
