"""Opening, refusing and upgrading a store, and what its failures mean."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_home

from retraining.errors import PipelineError, TryLaterError
from retraining.registry import open_registry
from retraining.registry.store import as_pipeline_error, create_store, upgrade_store
from retraining.text import printable

SettingsOf = Callable[..., Any]


class TestStores:
    """Opening, refusing and upgrading."""

    def test_nothing_creates_a_store(self, tmp_path: Path, settings_of: SettingsOf) -> None:
        """A wrong folder stays as it is."""
        home = make_home(tmp_path / "home")
        with pytest.raises(PipelineError, match="run: python register_first_model.py"):
            open_registry(settings_of(home))
        assert list((home / "mlflow_server/backend_db").iterdir()) == []

    def test_a_named_sqlite_file_is_not_created(
        self, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """A typing error in MLFLOW_TRACKING_URI is no new empty store."""
        home = make_home(tmp_path / "home")
        with pytest.raises(PipelineError, match="there is no store at"):
            open_registry(settings_of(home, tracking_uri=f"sqlite:///{tmp_path}/wrong.db"))
        assert not (tmp_path / "wrong.db").exists()

    def test_no_database_is_no_store(self, home: Path, settings_of: SettingsOf) -> None:
        """A text file in its place is named, not overwritten."""
        settings = settings_of(home)
        settings.database.write_text("nothing")
        with pytest.raises(PipelineError, match="is not a readable MLflow store"):
            open_registry(settings)
        assert settings.database.read_text() == "nothing"

    def test_an_older_store_is_not_migrated_silently(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Refused with the command to run; the file does not change."""
        settings = settings_of(home)
        downgrade(settings.database)
        before = settings.database.read_bytes()
        with pytest.raises(PipelineError, match="upgrade-store"):
            open_registry(settings)
        assert settings.database.read_bytes() == before

    def test_upgrade_store_keeps_a_backup(self, home: Path, settings_of: SettingsOf) -> None:
        """The old schema stays beside the new one; a second time there is nothing to do."""
        settings = settings_of(home)
        revision = downgrade(settings.database)
        assert f"schema {revision} -> " in upgrade_store(settings)
        assert open_registry(settings).production.number() == 1
        (backup,) = settings.database.parent.glob("*.backup")
        with contextlib.closing(sqlite3.connect(backup)) as connection:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        assert found == revision
        assert "nothing to do" in upgrade_store(settings)

    def test_a_dead_server_costs_little(self, home: Path, settings_of: SettingsOf) -> None:
        """Asked for its health before MLflow spends its retries."""
        began = time.monotonic()
        with pytest.raises(TryLaterError, match="does not answer"):
            open_registry(settings_of(home, tracking_uri="http://127.0.0.1:9"))
        assert time.monotonic() - began < 30

    def test_passwords_are_not_printed(self, home: Path, settings_of: SettingsOf) -> None:
        """Not in messages about the store either."""
        assert printable("http://me:secret@host:5000/x") == "http://host:5000/x"
        assert printable("postgresql://me:a/b@db/mlflow") == "postgresql://db/mlflow"
        with pytest.raises(TryLaterError) as caught:
            open_registry(settings_of(home, tracking_uri="http://me:secret@127.0.0.1:9"))
        assert "secret" not in str(caught.value)


class TestCreation:
    """`create_store`."""

    def test_a_store_that_is_there_stays(self, home: Path, settings_of: SettingsOf) -> None:
        """Nothing is created over it."""
        settings = settings_of(home)
        before = settings.database.read_bytes()
        create_store(settings)
        assert settings.database.read_bytes() == before

    def test_what_dead_processes_left_goes(self, tmp_path: Path, settings_of: SettingsOf) -> None:
        """Half a store, and the journal of one, of this pipeline and of an older one."""
        settings = settings_of(make_home(tmp_path / "home"))
        folder = settings.database.parent
        for name in (
            ".pipeline-a.tmp",
            ".pipeline-a.tmp-journal",
            ".new-b.db",
            ".new-b.db-journal",
        ):
            (folder / name).write_bytes(b"half")
        create_store(settings)
        assert [path.name for path in folder.iterdir()] == ["mlflow.db"]
        assert stat.S_IMODE(settings.database.stat().st_mode) == 0o600
        assert open_registry(settings).production.number() is None


class TestFailures:
    """`as_pipeline_error`: what an operator reads."""

    def test_a_secret_is_cut_out_before_the_text_is_cut_short(
        self, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Its end may lie beyond the end of what is shown."""
        address = f"http://me:{'secret' * 60}@host/x"
        shown = as_pipeline_error(OSError(f"cannot reach {address}"), settings_of(tmp_path))
        assert shown is not None
        assert str(shown) == (
            f"cannot reach http://host/x; check the disk and the rights of {tmp_path}"
        )

    def test_a_long_failure_is_one_line(self, tmp_path: Path, settings_of: SettingsOf) -> None:
        """The first, or the one that names the driver's error."""
        from mlflow.exceptions import MlflowException

        settings = settings_of(tmp_path)
        text = "(Background)\n(psycopg2.OperationalError) gone\x1b[31m " + "x" * 1000
        shown = as_pipeline_error(MlflowException(text), settings)
        assert isinstance(shown, TryLaterError)
        assert r"failed: (psycopg2.OperationalError) gone\x1b[31m xxx" in str(shown)
        assert len(str(shown)) < 500
        assert "\n" not in str(shown)

    def test_a_bug_is_none_of_them(self, tmp_path: Path, settings_of: SettingsOf) -> None:
        """It keeps its traceback."""
        assert as_pipeline_error(ZeroDivisionError(), settings_of(tmp_path)) is None


def downgrade(database: Path) -> str:
    """Take a store one schema revision back, as an older MLflow would have left it."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    config = _get_alembic_config(f"sqlite:///{database}")
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(database, database.with_suffix(".before"))
    command.downgrade(config, "-1")
    database.with_suffix(".before").unlink()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def test_a_journal_of_a_dead_process_is_rolled_back(home: Path, settings_of: SettingsOf) -> None:
    """Killed in the middle of a transaction: the next command finds the store as it was."""
    database = home / "mlflow_server/backend_db/mlflow.db"
    code = """
import os, signal, sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("PRAGMA cache_size = 1")
store.execute("BEGIN IMMEDIATE")
store.execute("UPDATE runs SET status = 'RUNNING'")
store.execute("CREATE TABLE spill AS SELECT a.*, b.* FROM params AS a, params AS b")
os.kill(os.getpid(), signal.SIGKILL)
"""
    dead = subprocess.run([sys.executable, "-c", code, str(database)], check=False)
    assert dead.returncode == -signal.SIGKILL
    assert database.with_name("mlflow.db-journal").stat().st_size > 0
    registry = open_registry(settings_of(home))
    assert registry.production.number() == 1
    assert registry.runs._left_open(registry.runs.experiment_id()) == []
    assert not database.with_name("mlflow.db-journal").exists()
