"""Code of a version in a process of its own: what it gets, and what it cannot take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from retraining.confined import run_confined, without_passwords
from retraining.errors import PipelineError
from retraining.settings import Settings

SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": "secret-1",
    "MLFLOW_TRACKING_URI": "http://me:secret-2@host",
    "MLFLOW_S3_ENDPOINT_URL": "http://host",
    "AWS_SECRET_ACCESS_KEY": "secret-3",
    "AZURE_STORAGE_CONNECTION_STRING": "secret-4",
    "GOOGLE_APPLICATION_CREDENTIALS": "secret-5",
    "PIPELINE_ON_PROMOTION": "secret-6",
    "WEBHOOK_SECRET": "secret-7",
    "PYTHONPATH": "secret-8",
    "SSH_AUTH_SOCK": "secret-9",
}
TELL = """
import json, os, sys
from pathlib import Path
told = {"environment": dict(os.environ), "folder": os.getcwd(), "home": str(Path.home())}
told["mode"] = os.stat(".").st_mode & 0o777
Path(sys.argv[1]).write_text(json.dumps(told))
"""


def run(code: str, *words: str, **values: float) -> None:
    """Run code confined."""
    run_confined(["-c", code, *words], Settings(**values), "it fails", "look")  # type: ignore[arg-type]


def test_it_gets_no_address_and_no_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands in the job's environment: neither names nor values."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run(TELL, str(tmp_path / "told.json"))
    told = json.loads((tmp_path / "told.json").read_text())
    assert "secret-" not in json.dumps(told)
    known = {"MLFLOW_ENV_ROOT", "MLFLOW_DISABLE_TELEMETRY"}
    prefixes = ("MLFLOW_", "AWS_", "AZURE_", "GOOGLE_", "PIPELINE_")
    assert {name for name in told["environment"] if name.startswith(prefixes)} == known


def test_it_gets_a_private_folder_that_goes(tmp_path: Path) -> None:
    """As home, working and temporary folder: no credentials of the real home are found there."""
    run(TELL, str(tmp_path / "told.json"))
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["home"] == told["environment"]["TMPDIR"] == told["folder"]
    assert told["home"] != str(Path.home())
    assert told["mode"] == 0o700
    assert not Path(told["folder"]).exists()


def test_it_may_not_take_all_memory() -> None:
    """A list that grows ends in a line."""
    with pytest.raises(PipelineError, match=r"^it fails: MemoryError; look$"):
        run("x = bytearray(10**9)", code_memory_mb=300)


def test_it_may_not_fill_the_disk(tmp_path: Path) -> None:
    """A file that grows, too."""
    code = "file = open(__import__('sys').argv[1], 'wb')\nwhile True: file.write(b'x' * 10**6)"
    with pytest.raises(PipelineError, match="^it fails: OSError: .*[Ff]ile too large"):
        run(code, str(tmp_path / "large"), code_memory_mb=100)


def test_it_may_not_take_all_night() -> None:
    """Nor may what it started."""
    code = "import subprocess, time; subprocess.Popen(['sleep', '987']); time.sleep(60)"
    with pytest.raises(PipelineError, match="^it fails: it took more than 1 seconds; raise --task"):
        run(code, task_timeout=1)
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sleep 987" not in processes.stdout


def test_what_it_says_is_one_harmless_line() -> None:
    """However much of it, and whatever is in it."""
    code = "import sys; print('\\n' * 10**6); sys.exit('\\x1b[2J2026-01-01 INFO promoted')"
    with pytest.raises(PipelineError) as caught:
        run(code)
    assert str(caught.value) == r"it fails: \x1b[2J2026-01-01 INFO promoted; look"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends it with its parent")
def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Killed with -9, that one cannot end it."""
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); "
    starter = (
        "from retraining.confined import run_confined; from retraining.settings import Settings; "
        f"run_confined(['-c', {code + 'time.sleep(60)'!r}], Settings(), '', '')"
    )
    with subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT) as parent:
        for _ in range(100):
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                break
            time.sleep(0.1)
        parent.send_signal(signal.SIGKILL)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_hooks_keep_all_but_the_password_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the operator's own commands."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.setenv("MY_CHAT_ROOM", "room")
    found = without_passwords()
    assert "secret" not in found.values()
    assert found["MY_CHAT_ROOM"] == "room"
    assert found["PATH"] == os.environ["PATH"]


def test_a_lower_limit_of_the_system_holds() -> None:
    """Whoever set it may not raise it either."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); "
        "from retraining.confined import run_confined; from retraining.settings import Settings; "
        "run_confined(['-c', 'print(1)'], Settings(), 'it fails', 'look')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
