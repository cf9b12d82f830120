"""A container's surroundings: no home folder, a number for a user, no room for temporary files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST_WORDS, ROOT

from pipeline_orchestrator import main
from retraining.registry import store
from retraining.registry.store import as_pipeline_error, disk_in_words
from retraining.settings import Settings

NOBODY = 12345
"""A user that has no name anywhere."""


class TestUserWithoutAName:
    """As `docker run --user 12345` without HOME."""

    @pytest.mark.slow
    def test_status_and_a_quiet_night_work(self, home: Path) -> None:
        """MLflow is imported, which asks for a home folder."""
        if os.geteuid() != 0 or shutil.which("setpriv") is None:
            pytest.skip("only root, with setpriv, can be another user")
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        became = [
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
            # The tests' Python may lie in the home folder of root.
            *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
            *("env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME"),
        ]
        for words in (["status"], ["run", "--dry-run", "--min-new-files", "100"]):
            done = subprocess.run(
                [*became, sys.executable, "pipeline_orchestrator.py", *words, "--home", str(home)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=100,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("before", [None, ""])
    def test_a_home_folder_is_named(
        self, monkeypatch: pytest.MonkeyPatch, before: str | None
    ) -> None:
        """That of the user's name if it has one; one that is there stays."""
        monkeypatch.setenv("HOME", "/srv")
        store.prepare_environment()
        assert os.environ["HOME"] == "/srv"
        if before is None:
            monkeypatch.delenv("HOME")
        else:
            monkeypatch.setenv("HOME", before)
        store.prepare_environment()
        assert os.environ["HOME"] == str(Path.home())

        def has_no_name(*_: Any) -> None:
            raise KeyError(NOBODY)

        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", has_no_name)
        store.prepare_environment()
        assert os.environ["HOME"] == "/nonexistent"


class TestTemporaryFiles:
    """TMPDIR on a disk of its own."""

    @pytest.mark.parametrize(
        "size", ["300k", pytest.param("650k", marks=pytest.mark.slow)], ids=["download", "upload"]
    )
    def test_a_full_disk_is_an_error_that_names_it(
        self,
        home: Path,
        tmp_path: Path,
        size: str,
        fast_training: None,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Not 75: it would be tried in vain every night. MLflow's own error hides the reason."""
        small = tmp_path / "small"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a tmpfs")
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        try:
            status = main(["run", *FAST_WORDS, "--home", str(home)])
        finally:
            subprocess.run(["umount", "--lazy", str(small)], check=True)
        said = capsys.readouterr().err
        assert status == 1, said
        line = said.splitlines()[-1]
        assert line.startswith("error: No space left on device; check the disk")
        assert f"{small}, which has " in line
        assert "set TMPDIR to a folder with room" in line
        assert "Traceback" not in said

    def test_none_can_be_written_to(self, home: Path) -> None:
        """Python's own list of what it tried, and what to set."""
        error = FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/srv']")
        known = as_pipeline_error(error, Settings(home=home))
        assert known is not None
        assert known.exit_status == 1
        assert "No usable temporary directory found in ['/tmp', '/srv']; set TMPDIR" in str(known)

    def test_a_full_disk_of_a_server_is_its_own(self, home: Path) -> None:
        """What it tells is no reason to look for room here."""
        from mlflow.exceptions import MlflowException, RestException

        text = "[Errno 28] No space left on device: '/srv/artifacts'"
        there = RestException({"error_code": "INTERNAL_ERROR", "message": text})
        assert disk_in_words(there, Settings(home=home)) == ""
        assert disk_in_words(MlflowException(text), Settings(home=home)) != ""


class TestStandardOutput:
    """Whoever started a command need not listen."""

    @pytest.mark.parametrize("end", [">&-", "| head -0", "| true"])
    def test_one_that_is_closed_is_no_failure(self, end: str) -> None:
        """No traceback, and the status of what was done."""
        code = (
            "import sys, time; from retraining.command_line import print_result; time.sleep(0.3); "
            "print_result(['x' * 100_000], {}, as_json=False)"
        )
        done = subprocess.run(
            ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {end}', sys.executable, code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
