"""A moved or copied home: refused by every command, mended by `relocate`."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Domain

import pipeline_orchestrator
import register_first_model
from pipeline_orchestrator import run_orchestrator
from retraining.commands.predict import predict
from retraining.commands.requeue import requeue
from retraining.commands.rollback import rollback
from retraining.commands.status import status
from retraining.errors import PipelineError, TryLaterError
from retraining.files import exclusive_lock, hash_file
from retraining.journal import Home, Journal
from retraining.outcome import Outcome
from retraining.recovery import NOTE_NAME, unfinished_until_done
from retraining.registry import open_registry, places
from retraining.registry.facts import MANIFEST_FILE, TAG_CYCLE
from retraining.registry.relocation import Relocated, relocate
from retraining.registry.store import upgrade_store
from retraining.settings import Settings
from retraining.text import printable

SettingsOf = Callable[..., Any]


def database_of(home: Path) -> Path:
    """Return the embedded store of a home."""
    return home / "mlflow_server/backend_db/mlflow.db"


def all_texts(database: Path) -> str:
    """Return everything that a store holds."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return "\n".join(connection.iterdump())


def store_rows(database: Path, query: str, *values: object) -> list[Any]:
    """Change a store by hand, or read it."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        return connection.execute(query, values).fetchall()


def whole(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder but the lock's."""
    return {
        str(path.relative_to(folder)): hash_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".pipeline.lock", ".pipeline_last_run.json")
    }


@pytest.fixture
def moved(home: Path, tmp_path: Path) -> Path:
    """Give a home that was moved."""
    return home.rename(tmp_path / "elsewhere")


@pytest.fixture
def copied(home: Path, tmp_path: Path) -> Path:
    """Give a copy of a home, beside it."""
    return Path(shutil.copytree(home, tmp_path / "copy"))


COMMANDS: dict[str, Callable[[Settings], object]] = {
    "run": run_orchestrator,
    "a quiet night": lambda settings: run_orchestrator(
        Settings(home=settings.home, min_new_files=100)
    ),
    "run --dry-run": lambda settings: run_orchestrator(settings, dry_run=True),
    "status": lambda settings: status(settings, None),
    "rollback": lambda settings: rollback(settings, 1),
    "requeue": lambda settings: requeue(settings, []),
    "predict": lambda settings: predict(settings, [str(settings.new_gts / "new_01.csv")]),
    "upgrade-store": upgrade_store,
    "register": register_first_model.register_first_model,
}


class TestRefusals:
    """No command works in a home whose store points to another one."""

    @pytest.mark.parametrize("name", list(COMMANDS))
    def test_a_copy_changes_nothing_and_names_the_command(
        self, name: str, home: Path, copied: Path, settings_of: SettingsOf
    ) -> None:
        """A copy wrote its models into the original."""
        before = whole(home), whole(copied)
        with pytest.raises(PipelineError, match=r"looks like a copy.* relocate --copy"):
            COMMANDS[name](settings_of(copied))
        assert (whole(home), whole(copied)) == before

    @pytest.mark.parametrize("name", ["run", "register"])
    def test_a_moved_home_names_the_command(
        self, name: str, moved: Path, settings_of: SettingsOf
    ) -> None:
        """Registering there would have replaced production by the first pickle."""
        before = whole(moved)
        with pytest.raises(PipelineError, match=r"was moved.* relocate$"):
            COMMANDS[name](settings_of(moved))
        assert whole(moved) == before

    def test_the_original_works_on(self, home: Path, copied: Path, settings_of: SettingsOf) -> None:
        """A copy beside it is no reason to stop."""
        assert copied.is_dir()
        assert places.elsewhere(settings_of(home)) is None

    def test_another_home_in_the_old_place_is_no_original(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """The home was moved away, and a new one begun where it was."""
        moved = home.rename(tmp_path / "elsewhere")
        home.mkdir()
        Journal(home).append()
        with pytest.raises(PipelineError, match=r"was moved.* relocate$"):
            places.check(settings_of(moved))

    def test_a_home_by_another_path_is_not_moved(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Registered through a link, asked for without it, and the other way round."""
        other = home.rename(tmp_path / "disk")
        home.symlink_to(other)
        for path in (home, other):
            assert places.elsewhere(settings_of(path)) is None

    def test_artifacts_on_another_disk_are_of_the_home(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """A link of the operator leads there, and the store may name either end."""
        disk = tmp_path / "disk/mlflow_server"
        disk.mkdir(parents=True)
        (home / "mlflow_server/artifacts").rename(disk / "artifacts")
        (home / "mlflow_server/artifacts").symlink_to(disk / "artifacts")
        assert places.elsewhere(settings_of(home)) is None
        places.rewrite(database_of(home), (home,), tmp_path / "disk")
        assert places.elsewhere(settings_of(home)) is None

    @pytest.mark.parametrize(
        "place", ["s3://bucket/stems/1", "mlflow-artifacts:/1", "/data/mlruns/1", "", None]
    )
    def test_places_of_no_home_are_people_s_own(
        self, place: str | None, home: Path, settings_of: SettingsOf
    ) -> None:
        """They stay where they are, whoever moves."""
        store_rows(database_of(home), "UPDATE experiments SET artifact_location = ?", place)
        assert places.elsewhere(settings_of(home)) is None

    def test_a_store_outside_the_home_is_no_matter_of_it(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Several homes may share it."""
        shutil.copy(database_of(home), tmp_path / "shared.db")
        settings = settings_of(tmp_path, tracking_uri=f"sqlite:///{tmp_path.parent}/shared.db")
        assert places.elsewhere(settings) is None
        with pytest.raises(PipelineError, match="nothing in it depends on where the home is"):
            relocate(settings, as_copy=False)

    def test_a_copy_that_shares_the_store_is_told_so(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Its store is a link: rewriting it would break the original."""
        disk = (home / "mlflow_server").rename(tmp_path / "disk")
        (home / "mlflow_server").symlink_to(disk)
        copied = Path(shutil.copytree(home, tmp_path / "copy", symlinks=True))
        with pytest.raises(PipelineError, match="use one store"):
            places.check(settings_of(copied))
        with pytest.raises(PipelineError, match="use one store"):
            relocate(settings_of(copied), as_copy=True)

    @pytest.mark.parametrize("name", ["50% off", "50%20off", "what?x=1", "a #b", "ä 'b'"])
    def test_strange_names_of_folders(
        self, name: str, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Percent signs, question marks and quotes are names as any."""
        moved = home.rename(tmp_path / name)
        relocate(settings_of(moved), as_copy=False)
        assert places.elsewhere(settings_of(moved)) is None
        again = moved.rename(tmp_path / "plain")
        assert places.elsewhere(settings_of(again)) == places.Elsewhere((moved,), None, False)


class TestRelocate:
    """All places follow, or none."""

    def test_a_moved_home_goes_on(self, home: Path, moved: Path, settings_of: SettingsOf) -> None:
        """Every place is its own, and production loads."""
        settings = settings_of(moved)
        lines = relocate(settings, as_copy=False)
        assert lines[0].startswith("relocated: ")
        assert "1 versions are whole" in lines[0]
        left = [line for line in all_texts(database_of(moved)).splitlines() if str(home) in line]
        # What was so then stays: whose runs they are, and with what they were begun.
        assert all("pipeline_home" in line or "'home'" in line for line in left)
        state = status(settings, None)
        assert state["production"] == 1
        assert predict(settings, [str(moved / "new_gts/new_01.csv")]) == 0

    def test_the_journal_remembers(self, home: Path, moved: Path, settings_of: SettingsOf) -> None:
        """It is the same home."""
        before = Journal(moved).read().home_id
        relocate(settings_of(moved), as_copy=False)
        memory = Journal(moved).read()
        (entry,) = memory.all(Relocated)
        assert (entry.origin, entry.to, entry.as_copy) == (str(home), str(moved), False)
        assert memory.home_id == before

    def test_a_second_time_changes_nothing(self, moved: Path, settings_of: SettingsOf) -> None:
        """It says so."""
        relocate(settings_of(moved), as_copy=False)
        before = whole(moved)
        assert "nothing to do" in relocate(settings_of(moved), as_copy=False)[0]
        assert whole(moved) == before

    def test_a_copy_needs_a_word(self, copied: Path, settings_of: SettingsOf) -> None:
        """Two homes of one id are a person's decision."""
        before = whole(copied)
        with pytest.raises(PipelineError, match="relocate --copy"):
            relocate(settings_of(copied), as_copy=False)
        assert whole(copied) == before

    def test_a_copy_gets_an_id_of_its_own(
        self, home: Path, copied: Path, settings_of: SettingsOf
    ) -> None:
        """Once, however often it is asked for; the original keeps its own."""
        before, ours = whole(home), Journal(home).read().home_id
        for _ in range(2):
            relocate(settings_of(copied), as_copy=True)
        memory = Journal(copied).read()
        assert len(memory.all(Home)) == 2
        assert memory.home_id == memory.all(Home)[-1].id != ours
        assert whole(home) == before

    def test_the_command_line(self, moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The advice in the message works, and `history` tells of it."""
        words = ["--home", str(moved)]
        assert pipeline_orchestrator.main(["status", *words]) == 1
        command = capsys.readouterr().err.rpartition("pipeline_orchestrator.py ")[2].split()
        assert pipeline_orchestrator.main([*command, *words]) == 0
        capsys.readouterr()
        assert pipeline_orchestrator.main(["history", *words]) == 0
        assert f"moved: {moved.parent / 'home'} -> {moved}" in capsys.readouterr().out

    def test_the_wrong_model_is_named(self, moved: Path, settings_of: SettingsOf) -> None:
        """Its places tell nothing."""
        with pytest.raises(PipelineError, match="holds: StemClassifierPostprocessing"):
            relocate(settings_of(moved, model_name="Oaks"), as_copy=False)

    def test_a_lost_journal_is_begun_as_ever(self, moved: Path, settings_of: SettingsOf) -> None:
        """One with nothing but the move in it would vouch for no version."""
        Journal(moved).path.unlink()
        relocate(settings_of(moved), as_copy=True)
        assert not Journal(moved).path.exists()
        registry = open_registry(settings_of(moved))
        registry.vouches.check(registry.production.champion())

    def test_places_in_tags_follow(self, home: Path, moved: Path, settings_of: SettingsOf) -> None:
        """As MLflow's own clients leave them with runs."""
        database = database_of(moved)
        run = store_rows(database, "SELECT run_uuid FROM runs")[0][0]
        kept = f'[{{"artifact_path": "{(home / "mlflow_server/artifacts").as_uri()}/models/m-1"}}]'
        store_rows(
            database, "INSERT INTO tags VALUES ('mlflow.log-model.history', ?, ?)", kept, run
        )
        relocate(settings_of(moved), as_copy=False)
        query = "SELECT value FROM tags WHERE key = 'mlflow.log-model.history'"
        assert store_rows(database, query) == [(kept.replace(str(home), str(moved)),)]

    @pytest.mark.parametrize("how", ["missing", "changed", "its manifest"])
    def test_production_must_be_whole(self, how: str, moved: Path, settings_of: SettingsOf) -> None:
        """Else nothing is changed."""
        (model,) = moved.glob("mlflow_server/artifacts/models/*/artifacts")
        if how == "missing":
            shutil.rmtree(model)
        elif how == "changed":
            (model / "MLmodel").write_text("other")
        else:
            (manifest,) = moved.glob(f"mlflow_server/artifacts/*/artifacts/{MANIFEST_FILE}")
            manifest.write_text("{}")
        before = whole(moved)
        with pytest.raises(PipelineError, match=r"version 1 .*production.*nothing was changed"):
            relocate(settings_of(moved), as_copy=False)
        assert whole(moved) == before

    def test_a_digest_that_was_edited_is_not_believed(
        self, moved: Path, settings_of: SettingsOf
    ) -> None:
        """The home's word counts, not the store's."""
        from retraining.registry.stored_models import folder_digest

        (model,) = moved.glob("mlflow_server/artifacts/models/*/artifacts")
        (model / "MLmodel").write_text("other")
        query = "UPDATE model_version_tags SET value = ? WHERE key = 'artifact_sha256'"
        store_rows(database_of(moved), query, folder_digest(model))
        with pytest.raises(PipelineError, match="not those that were registered"):
            relocate(settings_of(moved), as_copy=False)

    def test_a_damaged_store_is_told(self, moved: Path, settings_of: SettingsOf) -> None:
        """Copied while somebody wrote to it."""
        database = database_of(moved)
        content = database.read_bytes()
        half = len(content) // 2 // 4096 * 4096
        database.write_bytes(content[:half] + b"\xff" * 8192 + content[half + 8192 :])
        with pytest.raises(PipelineError, match="nothing was changed"):
            relocate(settings_of(moved), as_copy=False)

    def test_what_a_dead_process_left_beside_the_store_is_used(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """A write-ahead log belongs to the store, and must not be replayed over the new one."""
        ended = subprocess.run(
            [
                sys.executable,
                "-c",
                "import os, sqlite3, sys\n"
                "store = sqlite3.connect(sys.argv[1])\n"
                "store.execute('PRAGMA journal_mode = WAL')\n"
                "store.execute(\"UPDATE registered_models SET description = 'late'\")\n"
                "store.commit()\n"
                "os._exit(0)",
                database_of(home),
            ],
            check=True,
        )
        assert ended.returncode == 0
        assert database_of(home).with_name("mlflow.db-wal").stat().st_size
        moved = home.rename(tmp_path / "elsewhere")
        relocate(settings_of(moved), as_copy=False)
        database = database_of(moved)
        assert store_rows(database, "SELECT description FROM registered_models") == [("late",)]
        assert places.damage(database) == ""
        assert places.elsewhere(settings_of(moved)) is None

    def test_an_open_store_is_left(self, moved: Path, settings_of: SettingsOf) -> None:
        """What another program writes into the old file would be lost."""
        keeper = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys\nwith open(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()",
                database_of(moved),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert keeper.stdin and keeper.stdout
        keeper.stdout.readline()
        try:
            with pytest.raises(TryLaterError, match="open in another program"):
                relocate(settings_of(moved), as_copy=False)
        finally:
            keeper.stdin.close()
            keeper.wait(timeout=10)
            keeper.stdout.close()
        relocate(settings_of(moved), as_copy=False)

    def test_the_store_stays_its_user_s_alone(self, moved: Path, settings_of: SettingsOf) -> None:
        """It and its backup have the rights that it had."""
        database = database_of(moved)
        database.chmod(0o600)
        relocate(settings_of(moved), as_copy=False)
        for path in (database, database.with_name("mlflow.db.before_relocating.backup")):
            assert path.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("dies_at", ["replace", "append"])
    def test_killed_it_is_ended_by_a_second_call(
        self,
        dies_at: str,
        copied: Path,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One id, one line in the journal, one store."""
        from retraining.registry import relocation

        def die(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if dies_at == "replace":
                patch.setattr(relocation, "_replace", die)
            else:
                patch.setattr(relocation, "append", die)
            with pytest.raises(KeyboardInterrupt):
                relocate(settings_of(copied), as_copy=True)
        relocate(settings_of(copied), as_copy=True)
        memory = Journal(copied).read()
        assert len(memory.all(Relocated)) == 1
        assert len(memory.all(Home)) == 2
        assert places.elsewhere(settings_of(copied)) is None


class TestACopyOfANightAtWork:
    """What the original had open is its own matter."""

    @pytest.mark.slow
    def test_its_open_run_is_closed_in_the_copy_alone(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """The copy has the note, the lock's text and the run; the original goes on."""
        settings = settings_of(home)
        registry = open_registry(settings)
        with (
            exclusive_lock(settings, "run"),
            unfinished_until_done(settings, "run") as cycle_id,
            registry.runs.open("ModelMonitoring", {TAG_CYCLE: cycle_id}),
        ):
            copied = Path(shutil.copytree(home, tmp_path / "copy"))
            relocate(settings_of(copied), as_copy=True)
            requeue(settings_of(copied), [])
            query = "SELECT count(*) FROM runs WHERE status = 'RUNNING'"
            assert store_rows(database_of(copied), query) == [(0,)]
            assert not (copied / NOTE_NAME).exists()
            assert store_rows(database_of(home), query) == [(1,)]
            assert (home / NOTE_NAME).exists()
            open_registry(settings)


class TestLosersAndPredecessors:
    """Only what is in use must be whole."""

    @pytest.mark.sampled(0.5)
    @pytest.mark.slow
    @pytest.mark.parametrize(("alias", "fatal"), [("previous_production", True), ("", False)])
    def test_an_old_version_may_be_broken(
        self,
        alias: str,
        fatal: bool,
        history_of: Callable[..., tuple[Path, Any]],
        domain: Domain,
        tmp_path: Path,
        settings_of: SettingsOf,
    ) -> None:
        """It is told; the version before production is needed, too."""

        def promote(home: Path) -> Any:
            return run_orchestrator(settings_of(home)).outcome

        home, outcome = history_of(domain, "relocated", promote, tmp_path / "lived")
        assert outcome is Outcome.PROMOTED
        moved = home.rename(tmp_path / "elsewhere")
        settings, database = settings_of(moved), database_of(moved)
        if not alias:
            query = "DELETE FROM registered_model_aliases WHERE alias = 'previous_production'"
            store_rows(database, query)
        query = "SELECT storage_location FROM model_versions WHERE version = 1"
        place = store_rows(database, query)[0][0]
        (moved / Path(place.removeprefix("file://")).relative_to(home) / "MLmodel").unlink()
        if fatal:
            with pytest.raises(PipelineError, match=r"version 1 .*previous production"):
                relocate(settings, as_copy=False)
            return
        lines = relocate(settings, as_copy=False)
        assert "1 versions are whole" in lines[0]
        assert "version 1" in printable(lines[1])
        assert status(settings, None)["production"] == 2
