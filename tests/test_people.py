"""People beside the pipeline in MLflow: aliases moved, things deleted, renamed and restored.

Each message is followed literally: the command is read out of it and run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    BATCH,
    FAST_WORDS,
    QUICK_PROCESS,
    ROOT,
    Domain,
    make_home,
    script,
    write_mislabelled,
)
from sample_gts import write_recordings

import pipeline_orchestrator
import register_first_model
from pipeline_orchestrator import run_orchestrator
from retraining.commands.export_model import export
from retraining.commands.history import change_line, history
from retraining.commands.import_model import import_model
from retraining.commands.rollback import rollback
from retraining.commands.status import status
from retraining.errors import PipelineError
from retraining.journal import BecameProduction, Journal
from retraining.outcome import Outcome
from retraining.recovery import tidy
from retraining.registry import Registry, open_registry
from retraining.registry.facts import NotInRegistry

SettingsOf = Callable[..., Any]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fast_training")]

COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )?python (?:-m mlflow |[a-z_]+\.py)[^;,()]*")


def advised(text: str) -> list[str]:
    """Return the commands that a message names."""
    return [found.strip() for found in COMMAND.findall(text)]


def follow(command: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of a message as it stands, in the folder of the scripts."""
    environment = {name: text for name, text in os.environ.items() if "TRACKING_URI" not in name}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        command,
        shell=True,
        cwd=ROOT,
        env=environment | QUICK_PROCESS | {"PIPELINE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def lived(
    history_of: Callable[..., tuple[Path, Any]],
    domain: Domain,
    settings_of: SettingsOf,
    tmp_path: Path,
) -> Path:
    """Give a home: version 1 was registered, version 2 is production, version 3 lost."""

    def live(home: Path) -> None:
        assert run_orchestrator(settings_of(home)).outcome is Outcome.PROMOTED
        write_mislabelled(home / "new_gts", seed=5)
        assert run_orchestrator(settings_of(home, threshold=0.01)).outcome is Outcome.NOT_PROMOTED

    return history_of(domain, "lived among people", live, tmp_path / "home")[0]


def client_of(settings: Any) -> tuple[Any, str]:
    """Return MLflow's client of a store, and the model's name."""
    return open_registry(settings).runs.connection.client, settings.model_name


def set_production(settings: Any, number: int) -> Registry:
    """Let a person move the alias in MLflow; return the registry."""
    client, name = client_of(settings)
    client.set_registered_model_alias(name, "production", str(number))
    return open_registry(settings)


class TestAliasByHand:
    """`production` was set by hand."""

    def test_on_a_loser(
        self, lived: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Run, status and history say so; a plain rollback undoes it, nothing is skipped."""
        settings = settings_of(lived, threshold=1000)
        set_production(settings, 3)
        run_orchestrator(settings)
        said = (
            "by hand: the alias 'production' was moved from version 2 to version 3, which had not "
            "been promoted ("
        )
        assert said in caplog.text
        (problem,) = [one for one in status(settings, None)["problems"] if "by hand" in one]
        assert problem.startswith(said)
        assert advised(problem) == [
            "python pipeline_orchestrator.py rollback",
            "python pipeline_orchestrator.py rollback --to 3",
        ]
        newest = history(settings)[0]
        assert (newest["event"], newest["from"], newest["to"]) == ("unrecorded", 2, 3)
        assert rollback(settings, None) == (
            "rolled back: version 2 is production, it was version 3"
        )
        assert not any("by hand" in one for one in status(settings, None)["problems"])
        # Once more: to what was production before, never to what only a hand made that.
        assert rollback(settings, None).startswith("rolled back: version 1 is production")
        assert open_registry(settings).production.previous_number() == 2

    def test_meant(self, lived: Path, settings_of: SettingsOf) -> None:
        """The other advice records it; then the version before is the one before."""
        settings = settings_of(lived)
        set_production(settings, 3)
        assert rollback(settings, 3) == (
            "recorded: version 3, which was made production by hand, is production"
        )
        newest = history(settings)[0]
        assert (newest["event"], newest["from"], newest["to"]) == ("rollback", 2, 3)
        assert (
            open_registry(settings).production.moved_by_hand(
                open_registry(settings).production.champion()
            )
            == ""
        )
        assert rollback(settings, None).startswith("rolled back: version 2")

    def test_on_an_old_version(self, lived: Path, settings_of: SettingsOf) -> None:
        """Back to what the pipeline had, not to what that version replaced long ago."""
        settings = settings_of(lived)
        registry = set_production(settings, 1)
        said = registry.production.moved_by_hand(registry.production.champion())
        assert "from version 2 to version 1, which had been production before" in said
        assert rollback(settings, None).startswith("rolled back: version 2")

    @pytest.mark.parametrize("what", ["foreign flavour", "without our tags"])
    def test_on_a_version_of_somebody_else(
        self, lived: Path, settings_of: SettingsOf, what: str
    ) -> None:
        """Refused by run and status with the same words; a rollback needs nothing of it."""
        settings = settings_of(lived)
        client, name = client_of(settings)
        source = f"{lived}/mlflow_server/artifacts"
        if what == "foreign flavour":
            (lived / "mlflow_server/artifacts/theirs").mkdir()
            (lived / "mlflow_server/artifacts/theirs/MLmodel").write_text("flavors: {onnx: {}}\n")
            source += "/theirs"
        made = client.create_model_version(name, source)
        set_production(settings, int(made.version))
        with pytest.raises(PipelineError, match="version 4 is not one that this home registered"):
            run_orchestrator(settings)
        problems = status(settings, None)["problems"]
        assert any("version 4 is not one that this home registered" in one for one in problems)
        assert "None" not in " ".join(problems)
        assert rollback(settings, None) == (
            "rolled back: version 2 is production, it was version 4"
        )

    def test_status_fails_where_production_does_not_load(
        self, lived: Path, settings_of: SettingsOf
    ) -> None:
        """Not only at the next night with enough files."""
        settings = settings_of(lived)
        for path in (lived / "mlflow_server" / "artifacts").rglob("model.skops"):
            path.unlink()
        assert any(
            "the files of version 2 are not those" in one
            for one in status(settings, None)["problems"]
        )


class TestDeleted:
    """Somebody cleaned up."""

    def test_the_alias(self, lived: Path, settings_of: SettingsOf) -> None:
        """The message puts it back; nothing was "version None"."""
        settings = settings_of(lived)
        client, name = client_of(settings)
        client.delete_registered_model_alias(name, "production")
        with pytest.raises(NotInRegistry, match="put it back on version 2") as caught:
            run_orchestrator(settings)
        with pytest.raises(NotInRegistry, match="put it back on version 2"):
            register_first_model.register_first_model(settings)
        assert advised(str(caught.value)) == ["python pipeline_orchestrator.py rollback"]
        assert rollback(settings, None) == ("version 2 is production again; the alias was missing")
        assert change_line(history(settings)[0]).count("None") == 0

    def test_production_itself(self, lived: Path, settings_of: SettingsOf) -> None:
        """Back to the version before it, which the journal knows."""
        settings = settings_of(lived)
        client, name = client_of(settings)
        client.delete_model_version(name, "2")
        with pytest.raises(NotInRegistry, match="version 2 of .* was deleted in MLflow"):
            run_orchestrator(settings_of(lived, threshold=0.01))
        assert rollback(settings, None).startswith("version 1 is production again")

    def test_production_and_all_before_it(self, lived: Path, settings_of: SettingsOf) -> None:
        """What is left never was production: only a backup or a person helps."""
        settings = settings_of(lived)
        client, name = client_of(settings)
        for number in ("1", "2"):
            client.delete_model_version(name, number)
        with pytest.raises(NotInRegistry, match="no version before it is left: restore the store"):
            run_orchestrator(settings)
        with pytest.raises(PipelineError, match=r"--to, of 3 \(which had not been promoted\), or"):
            rollback(settings, None)
        with pytest.raises(PipelineError, match="no CSV that the model learnt"):
            register_first_model.register_first_model(settings)
        said = register_first_model.register_first_model(settings, train=True)
        assert said.startswith("registered version 4 as production")

    def test_a_loser_and_all_runs(self, lived: Path, settings_of: SettingsOf) -> None:
        """History, status and the question of a night are what they were."""
        settings = settings_of(lived, threshold=0.01)
        before = history(settings), status(settings, None)["cycles"]
        client, name = client_of(settings)
        client.delete_model_version(name, "3")
        experiment = client.get_experiment_by_name(name).experiment_id
        for run in client.search_runs([experiment]):
            client.delete_run(run.info.run_id)
        assert (history(settings), status(settings, None)["cycles"]) == before
        assert run_orchestrator(settings).outcome is Outcome.ALREADY_JUDGED
        assert rollback(settings, None).startswith("rolled back: version 1")

    def test_runs_that_are_gone_for_good(self, lived: Path, settings_of: SettingsOf) -> None:
        """The journal tells the same history."""
        settings = settings_of(lived)
        before = history(settings)
        erase_runs(settings, "ModelPromotion")
        assert history(settings)[:-1] == before[:-1]  # the first one has a run of another name

    def test_the_experiment(
        self, lived: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Every command that writes a run says how to restore it; reading goes on, tidying, too."""
        settings = settings_of(lived, threshold=0.01)
        before = history(settings)
        client, name = client_of(settings)
        experiment = client.get_experiment_by_name(name).experiment_id
        client.delete_experiment(experiment)
        (lived / ".pipeline_state.json").write_text('{"cycle_id": "dead"}')
        tidy(settings)
        assert history(settings) == before
        messages = {
            str(one) for one in status(settings, None)["problems"] if "was deleted" in str(one)
        }
        for command in (
            lambda: run_orchestrator(settings, force=True),
            lambda: rollback(settings, None),
        ):
            with pytest.raises(NotInRegistry, match="was deleted in MLflow on 20") as caught:
                command()
            messages.add(str(caught.value))
        (message,) = messages
        (restore,) = advised(message)
        assert restore.endswith(
            f"python -m mlflow experiments restore --experiment-id {experiment}"
        )
        client.restore_experiment(experiment)
        assert run_orchestrator(settings).outcome is Outcome.ALREADY_JUDGED

    def test_an_experiment_that_is_gone_for_good(
        self, lived: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A new one takes its place, with a warning; the manifest is what is missing then."""
        settings = settings_of(lived, threshold=0.01)
        before = history(settings)
        erase_runs(settings, "")
        with pytest.raises(PipelineError, match="the run of version 2 was removed from MLflow"):
            run_orchestrator(settings)
        assert "is gone from the store; a new one is made" in caplog.text
        assert history(settings)[:-1] == before[:-1]


def erase_runs(settings: Any, name: str) -> None:
    """Remove runs from a store for good, and without a name their experiment, as `mlflow gc`."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(settings.database)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        if name:
            connection.execute("DELETE FROM runs WHERE name = ?", (name,))
        else:
            connection.execute("DELETE FROM runs")
            connection.execute("DELETE FROM experiments WHERE name = ?", (settings.model_name,))
        connection.commit()


class TestRenamed:
    """Somebody likes another name better."""

    def test_the_experiment(self, lived: Path, settings_of: SettingsOf) -> None:
        """The message names it back."""
        settings = settings_of(lived, threshold=0.01)
        client, name = client_of(settings)
        experiment = client.get_experiment_by_name(name).experiment_id
        client.rename_experiment(experiment, "stems of spring")
        with pytest.raises(NotInRegistry, match="is called 'stems of spring' now") as caught:
            run_orchestrator(settings, force=True)
        (command,) = advised(str(caught.value))
        assert command.endswith(
            f"python -m mlflow experiments rename --experiment-id {experiment} --new-name {name}"
        )

    def test_the_model(self, lived: Path, settings_of: SettingsOf) -> None:
        """It is named, and the pipeline goes on under either name."""
        settings = settings_of(lived, threshold=1000)
        client, name = client_of(settings)
        client.rename_registered_model(name, "Oaks")
        with pytest.raises(NotInRegistry, match="holds other models: Oaks: name one with --model"):
            run_orchestrator(settings)
        client.rename_registered_model("Oaks", name)
        assert run_orchestrator(settings, force=True).outcome is Outcome.HEALTHY

    def test_descriptions(self, lived: Path, settings_of: SettingsOf) -> None:
        """They are for people; nothing reads them."""
        settings = settings_of(lived)
        client, name = client_of(settings)
        client.update_registered_model(name, "mine")
        client.update_model_version(name, "2", "\x1b[2J production: version 9")
        assert status(settings, None)["production"] == 2


class TestOtherHomes:
    """Two homes on one registered model."""

    def test_a_champion_of_another_home_is_refused_by_name(
        self, lived: Path, settings_of: SettingsOf, tmp_path: Path
    ) -> None:
        """The message says whose it is, and how a person takes it over."""
        settings = settings_of(lived)
        other = make_home(tmp_path / "other")
        write_recordings(other / "new_gts", BATCH, "new", seed=8, prefix="other")
        theirs = settings_of(other, tracking_uri=f"sqlite:///{settings.database}")
        with pytest.raises(PipelineError, match="but another one: it names .*/home;") as caught:
            run_orchestrator(theirs)
        write_recordings(other / "used_gts", BATCH, "old", seed=9, prefix="first")
        for force in (False, True):
            with contextlib.suppress(PipelineError):
                said = register_first_model.register_first_model(theirs, force=force, train=True)
                assert said == "version 2 is production already; nothing changed"
        assert open_registry(theirs).production.number() == 2
        trust, back = advised(str(caught.value))
        assert trust.startswith('python pipeline_orchestrator.py trust 2 --reason "')
        assert back == "python pipeline_orchestrator.py rollback"
        words = shlex.split(trust)[2:]
        assert (
            pipeline_orchestrator.main(
                [*words, "--home", str(other), "--tracking-uri", f"sqlite:///{settings.database}"]
            )
            == 0
        )
        assert (
            run_orchestrator(
                settings_of(other, tracking_uri=theirs.tracking_uri, threshold=1000)
            ).outcome
            is Outcome.HEALTHY
        )


class TestFirstModelAgain:
    """`register_first_model.py` never takes production back to less."""

    def test_force_is_refused_where_a_cycle_made_production(
        self, lived: Path, settings_of: SettingsOf
    ) -> None:
        """The better ways are named."""
        settings = settings_of(lived)
        with pytest.raises(PipelineError, match="made by a cycle, from 12 recordings") as caught:
            register_first_model.register_first_model(settings, force=True)
        assert advised(str(caught.value)) == [
            "python pipeline_orchestrator.py run --retrain",
            "python pipeline_orchestrator.py rollback",
        ]
        said = register_first_model.register_first_model(settings)
        assert said == "version 2 is production already; nothing changed"
        assert open_registry(settings).production.number() == 2

    def test_the_manifest_claims_what_the_pickle_can_have_learnt(
        self, lived: Path, settings_of: SettingsOf
    ) -> None:
        """What came by new_gts/ is younger."""
        settings = settings_of(lived)
        rollback(settings, 1)
        register_first_model.register_first_model(settings, force=True)
        registry = open_registry(settings)
        names = set(registry.learnt_by(registry.versions.get(4)).names.values())
        assert names == set(registry.learnt_by(registry.versions.get(1)).names.values())
        assert len([*(lived / "used_gts").glob("*.csv")]) == len(names) + BATCH


class TestChangesThatNeverWere:
    """The journal notes a change before the alias moves."""

    def test_a_command_that_died_in_between(
        self, lived: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No rollback goes to a version that never was production."""
        settings = settings_of(lived)
        append = Journal.append

        def die(journal: Journal, *entries: Any) -> None:
            append(journal, *entries)
            if isinstance(entries[0], BecameProduction):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Journal, "append", die)
            rollback(settings, 1)
        registry = open_registry(settings)
        before = [(one["from"], one["to"]) for one in history(settings)]
        assert before == [(1, 2), (None, 1)]
        tidy(settings)
        assert registry.production.recorded_number() == 2
        assert [(one["from"], one["to"]) for one in history(settings)] == before
        assert registry.production.moved_by_hand(registry.versions.get(2)) == ""

    def test_a_clock_that_went_back(
        self, lived: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The order is that of the changes; the history says that the times are not."""
        settings = settings_of(lived)
        import time

        real = time.time
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: real() - 86400)
            rollback(settings, 1)
        found = history(settings)
        assert [one["to"] for one in found] == [1, 2, 1]
        assert [one["clock_went_back"] for one in found] == [True, False, False]
        assert "the clock had gone back" in change_line(found[0])


class TestFollowedLiterally:
    """Real processes: the command of a message, as it stands, mends what the message is about."""

    def test_with_the_flags_that_were_given(self, lived: Path, settings_of: SettingsOf) -> None:
        """The home, the model and the rest of a line of a crontab."""
        client, name = client_of(settings_of(lived))
        client.delete_registered_model_alias(name, "production")
        failed = script("pipeline_orchestrator.py", *FAST_WORDS, home=lived)
        assert failed.returncode == 1
        (command,) = advised(failed.stderr)
        assert f"--home {lived}" in command
        mended = follow(command, Path("/nowhere"))
        assert mended.stdout == "version 2 is production again; the alias was missing\n"

    def test_a_deleted_and_a_renamed_experiment(self, lived: Path, settings_of: SettingsOf) -> None:
        """MLflow's own commands, with the address of the store."""
        settings = settings_of(lived)
        client, name = client_of(settings)
        experiment = client.get_experiment_by_name(name).experiment_id
        for deleted in (True, False):
            if deleted:
                client.delete_experiment(experiment)
            else:
                client.rename_experiment(experiment, "stems of spring")
            with pytest.raises(NotInRegistry) as caught:
                rollback(settings, None)
            (command,) = advised(str(caught.value))
            assert follow(command, lived).returncode == 0, command
            assert rollback(settings, None).startswith("rolled back")


def test_a_deleted_model_is_put_back_by_import(lived: Path, settings_of: SettingsOf) -> None:
    """Its runs are still in the experiment: none of them is there twice afterwards."""
    settings = settings_of(lived)
    before = history(settings), status(settings, None)["cycles"]
    archive = lived.parent / "exported.tar"
    export(settings, archive)
    assert "is of this very store; nothing changed" in import_model(settings, archive)[0]
    client, name = client_of(settings)
    client.delete_registered_model(name)
    with pytest.raises(NotInRegistry, match="if it was deleted: restore the store from a backup"):
        run_orchestrator(settings)
    import_model(settings, archive, "put back")
    assert (history(settings), status(settings, None)["cycles"]) == before


def test_what_no_cycle_can_use_is_not_exported(lived: Path, settings_of: SettingsOf) -> None:
    """Its run is gone for good; nothing is written, and nothing into a folder of the home."""
    settings = settings_of(lived)
    with pytest.raises(PipelineError, match="new_gts, a folder of the home; name a file elsewhere"):
        export(settings, lived / "new_gts" / "exported.csv")
    erase_runs(settings, "ModelRetraining")
    with pytest.raises(PipelineError, match="the run of version 2 was removed from MLflow"):
        export(settings, lived.parent / "exported.tar")
    assert not (lived.parent / "exported.tar").exists()
