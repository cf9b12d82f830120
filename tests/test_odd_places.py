"""Homes and stores with unusual names: `%`, `?`, `#`, quotes, letters of other scripts, queries."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, FAST_WORDS, OLD_SEASON_FILES, make_home, script
from fast_module import write_fast_module
from losers import add_loser

import register_first_model
from pipeline_orchestrator import main
from retraining.commands.backup import backup
from retraining.commands.export_model import export
from retraining.commands.history import history
from retraining.commands.import_model import import_model
from retraining.commands.predict import predict
from retraining.commands.prune import prune
from retraining.commands.restore import restore
from retraining.commands.rollback import rollback
from retraining.commands.status import status
from retraining.errors import PipelineError, UsageError
from retraining.registry import open_registry, places
from retraining.registry.relocation import relocate
from retraining.registry.store import upgrade_store
from retraining.settings import Settings, sqlite_uri

SettingsOf = Callable[..., Any]
ODD_NAMES = (
    *("50%20off", "50%off", "what?x=1", "a#b", "two words", 'it\'s "it"', "größe 樹", "a+b&c;d"),
)

ODD_NAME = '50%20off what?x=1 #2 "q"'


def only_registered(source: Path, target: Path) -> Path:
    """Copy the files of a home without its store."""
    home = make_home(target)
    for name in ("new_gts", "used_gts", "model"):
        shutil.copytree(source / name, home / name, dirs_exist_ok=True)
    return home


@pytest.mark.slow
def test_a_home_may_have_any_name(registered_template: Path, tmp_path: Path) -> None:
    """Registered, run, asked, read: in processes; nothing is written beside the home."""
    folder = tmp_path / "".join(ODD_NAMES)
    home = only_registered(registered_template, folder / "home")
    (tmp_path / "module").mkdir()
    module = ["--training-module", str(write_fast_module(tmp_path / "module"))]
    for name, *words in (
        ("register_first_model.py",),
        ("pipeline_orchestrator.py", *FAST_WORDS),
        ("pipeline_orchestrator.py", "status", "--json"),
    ):
        done = script(name, *words, *module, home=home)
        assert done.returncode == 0, done.stderr
    state = json.loads(done.stdout)
    assert (state["production"], state["waiting"], state["problems"]) == (2, 0, [])
    assert len(list((home / "used_gts").glob("*.csv"))) == OLD_SEASON_FILES + BATCH
    assert {*tmp_path.iterdir()} == {folder, tmp_path / "module"}
    assert [*folder.iterdir()] == [home]
    assert len(list((home / "mlflow_server" / "artifacts").rglob("model.skops"))) == 2


@pytest.mark.slow
def test_a_home_of_any_name_goes_anywhere(
    home: Path, tmp_path: Path, settings_of: SettingsOf
) -> None:
    """Restored, relocated, pruned, backed up, exported and imported, each into another odd name."""
    places_of = [tmp_path / f"{number} {ODD_NAME}" for number in range(4)]
    first, second, third, fourth = (settings_of(place) for place in places_of)
    backup(settings_of(home), tmp_path / "plain.tar")
    restore(first, tmp_path / "plain.tar")
    shutil.copytree(first.home, second.home)
    shutil.rmtree(first.home)
    shutil.rmtree(home)
    assert "1 versions are whole" in relocate(second, as_copy=False)[0]
    for _ in range(2):
        add_loser(second)
    assert prune(second, 1)[-1].startswith("pruned 1 version, ")
    backup(second, second.home / ODD_NAME)
    lines = restore(third, second.home / ODD_NAME)
    assert "2 versions are whole" in lines
    shutil.rmtree(second.home)
    export(third, tmp_path / f"{ODD_NAME}.tar")
    only_registered(third.home, fourth.home)
    said = import_model(fourth, tmp_path / f"{ODD_NAME}.tar", "of the other home")
    assert said[-1].endswith(": version 1 is production")
    for settings in (third, fourth):
        assert status(settings, None)["problems"] == []
        assert predict(settings, [str(settings.new_gts / "new_01.csv")]) == 0
        files = {place.parent.parent for place in settings.artifacts.rglob("MLmodel")}
        assert len(files) == 3
        assert [one["to"] for one in history(settings)] == [1]
        with pytest.raises(PipelineError, match="^version 2 was pruned on "):
            rollback(settings, 2)
        assert rollback(settings, 3).startswith("rolled back: version 3")
    assert {one.name for one in tmp_path.iterdir()} == {
        *("plain.tar", f"{ODD_NAME}.tar", third.home.name, fourth.home.name)
    }


class TestStoreAddresses:
    """`Settings.database` and `Settings.store_uri`."""

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_sqlalchemy_opens_the_very_file(self, tmp_path: Path, name: str) -> None:
        """Whatever its name, and nothing else in the folder."""
        import sqlalchemy

        settings = Settings(home=tmp_path / name)
        assert settings.database is not None
        settings.database.parent.mkdir(parents=True)
        engine = sqlalchemy.create_engine(settings.store_uri)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE here (n INTEGER)"))
        engine.dispose()
        assert [*settings.database.parent.iterdir()] == [settings.database]
        assert [*tmp_path.iterdir()] == [tmp_path / name]
        named = Settings(tracking_uri=settings.store_uri)
        assert (named.database, named.store_uri) == (settings.database, settings.store_uri)

    def test_a_query_is_no_part_of_the_name(self, home: Path, settings_of: SettingsOf) -> None:
        """It reaches the driver, and the raw reads of the store do without it."""
        file = settings_of(home).database
        settings = settings_of(home, tracking_uri=f"{sqlite_uri(file)}?timeout=60")
        assert settings.database == file
        assert settings.store_uri.endswith("mlflow.db?timeout=60")
        assert settings.has_own_store
        assert open_registry(settings).production.number() == 1
        assert "nothing to do" in upgrade_store(settings)

    @pytest.mark.slow
    def test_registration_makes_the_file_that_a_query_follows(
        self, registered_template: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """One store, under its own name."""
        home = only_registered(registered_template, tmp_path / "home")
        file = tmp_path / "50%off" / "store.db"
        settings = settings_of(home, tracking_uri=f"{sqlite_uri(file)}?timeout=60")
        register_first_model.register_first_model(settings)
        assert [one.name for one in file.parent.iterdir()] == ["store.db"]
        assert open_registry(settings).production.number() == 1

    @pytest.mark.parametrize(
        "uri", ["sqlite:///", "sqlite:///:memory:", "sqlite:///file:/srv/a.db?uri=true"]
    )
    def test_an_address_that_names_no_file_is_refused(self, uri: str) -> None:
        """With how a file is named."""
        with pytest.raises(UsageError, match="must name a file, as sqlite:////srv/mlflow.db"):
            Settings(tracking_uri=uri)


def newer(database: Path) -> None:
    """Give a store a schema that no installed migration knows."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


class TestNewerStore:
    """A store that a later MLflow has migrated."""

    @pytest.mark.parametrize("command", ["run", "status", "upgrade-store"])
    def test_the_installed_mlflow_is_to_be_upgraded(
        self, home: Path, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit 1 and nothing written, whatever is asked."""
        database = home / "mlflow_server/backend_db/mlflow.db"
        newer(database)
        before = database.read_bytes(), sorted(database.parent.iterdir())
        words = FAST_WORDS if command == "run" else []
        assert main([command, *words, "--home", str(home)]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"error: {database} is of a newer MLflow than the installed " in said
        assert 'pip install --upgrade "mlflow<4"' in said
        assert (database.read_bytes(), sorted(database.parent.iterdir())) == before

    def test_a_database_of_a_server_too(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No advice to migrate what is ahead."""
        from retraining.registry import store

        database = settings_of(home).database
        newer(database)
        with pytest.raises(PipelineError, match="is of a newer MLflow") as caught:
            store._check_database(sqlite_uri(database), create=False)
        assert "db upgrade" not in str(caught.value)


class TestModes:
    """Who may read what is written."""

    @pytest.mark.slow
    @pytest.mark.usefixtures("fast_training")
    def test_a_group_that_reads(self, home: Path) -> None:
        """The umask rules what we and MLflow write; recordings keep their mode, all else 0600."""
        recordings = {"new_01.csv": 0o640, "new_02.csv": 0o644}
        for name, mode in recordings.items():
            (home / "new_gts" / name).chmod(mode)
        (home / "new_gts/bad.csv").write_text("no table")
        store = home / "mlflow_server/backend_db/mlflow.db"
        store.chmod(0o660)
        known = {*home.rglob("*")}
        before = os.umask(0o027)
        try:
            assert main([*FAST_WORDS, "--home", str(home)]) == 0
        finally:
            os.umask(before)
        places.copy_database(store, store.with_name("copy.db"))
        modes = {
            path.relative_to(home): (path.is_dir(), stat.S_IMODE(path.stat().st_mode))
            for path in {*home.rglob("*")} - known
        }
        told = {path for path in modes if not any(part[0] == "." for part in path.parts)}
        assert {modes[path] for path in modes.keys() - told} <= {(False, 0o600), (True, 0o700)}
        for name in ("new_gts/rejected/bad.csv", "mlflow_server/backend_db/copy.db"):
            told -= {Path(name)}
        assert modes[Path("mlflow_server/backend_db/copy.db")] == (False, 0o660)
        used = {path for path in told if path.parts[0] == "used_gts"}
        assert {path.name: modes[path][1] for path in used if path.name in recordings} == recordings
        for folder in ("reports", "mlflow_server/artifacts", "new_gts/rejected"):
            ours = {path for path in told - used if path.is_relative_to(folder)}
            # Code that is packaged with a version keeps the modes of the checkout.
            ours = {path for path in ours if path.suffix != ".py"}
            assert {modes[path] for path in ours} <= {(False, 0o640), (True, 0o750)}
            assert ours
