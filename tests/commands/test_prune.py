"""What lost gives up its model file, and nothing else."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from buckets import bucket
from conftest import BATCH, DOMAINS, mlflow_server
from losers import add_loser, folder_of
from sample_gts import write_recordings
from test_pipeline_orchestrator import registry_of

from pipeline_orchestrator import main, run_orchestrator
from retraining import pruning
from retraining.commands.history import history
from retraining.commands.lineage import lineage
from retraining.commands.prune import prune
from retraining.commands.reproduce import reproduce
from retraining.commands.rollback import rollback
from retraining.commands.trust import trust
from retraining.errors import PipelineError, UsageError
from retraining.journal import BecameProduction, Journal
from retraining.outcome import Outcome
from retraining.recorder import Recorder
from retraining.registry import stored_models
from retraining.registry.pruned import Pruned
from retraining.registry.stored_models import MODEL_FILE

SettingsOf = Callable[..., Any]
History = Callable[..., tuple[Path, Any]]


def has_model(settings: Any, number: int) -> bool:
    """Say whether the model file of a version is there."""
    return (folder_of(settings, number) / MODEL_FILE).is_file()


def with_model(settings: Any) -> list[int]:
    """Return the versions whose model files are there, the oldest first."""
    numbers = sorted(one.number for one in registry_of(settings).versions.all())
    return [number for number in numbers if has_model(settings, number)]


@pytest.fixture
def four(history_of: History, settings_of: SettingsOf, tmp_path: Path) -> Any:
    """Give the settings of a home whose versions 2 to 5 lost."""

    def lose(home: Path) -> None:
        for _ in range(4):
            add_loser(settings_of(home))

    home, _ = history_of(DOMAINS["stems"], "four that lost", lose, tmp_path / "home")
    return settings_of(home)


class TestPrune:
    """`prune`."""

    def test_only_the_model_file_goes(self, four: Any, capsys: pytest.CaptureFixture[str]) -> None:
        """Of all but the newest; what it frees is told, and the day is in MLflow."""
        before = {number: sorted(folder_of(four, number).rglob("*")) for number in (2, 3)}
        n_bytes = (folder_of(four, 2) / MODEL_FILE).stat().st_size
        words = ["prune", "--keep", "2", "--home", str(four.home)]
        assert main([*words, "--dry-run"]) == 0
        told = capsys.readouterr().out.splitlines()
        size = f"{n_bytes / 1e3:.1f} kB" if n_bytes < 1e6 else f"{n_bytes / 1e6:.1f} MB"
        assert told[0] == f"version 2: its model file, {size}"
        assert told[-1].startswith("dry run, nothing changed: would prune 2 versions, ")
        assert with_model(four) == [1, 2, 3, 4, 5]
        assert main(words) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("pruned 2 versions, ")
        assert with_model(four) == [1, 4, 5]
        for number, paths in before.items():
            folder = folder_of(four, number)
            assert sorted(folder.rglob("*")) == [one for one in paths if one.name != MODEL_FILE]
            tag = registry_of(four).versions.get(number).tags["pruned"]
            assert tag.startswith(f"{time.strftime('%Y-%m-%d')} ")
        assert main(words) == 0
        assert capsys.readouterr().out.splitlines() == [
            "nothing to prune; the newest 2 that lost keep theirs"
        ]

    def test_by_default_a_person_called_finds_what_to_look_at(self, four: Any) -> None:
        """As many stay as lose until somebody is called."""
        assert main(["prune", "--home", str(four.home)]) == 0
        assert with_model(four) == [1, 3, 4, 5]
        assert main(["prune", "--home", str(four.home), "--keep-losers", "1"]) == 0
        assert with_model(four) == [1, 5]

    def test_what_has_a_use_stays(self, four: Any) -> None:
        """What was ever production, has any alias, or is not judged."""
        registry = registry_of(four)
        client, name = registry.runs.connection.client, four.model_name
        client.set_registered_model_alias(name, "canary", "2")
        Journal(four.home).append(BecameProduction(3, 1, "rollback", name, "then"))
        unjudged = add_loser(four, verdict="").number
        lines = prune(four, 0)
        assert with_model(four) == [1, 2, 3, unjudged]
        assert lines[-1].startswith("pruned 2 versions, ")

    def test_the_young_stay(self, four: Any) -> None:
        """All are of today."""
        assert prune(four, 0, 1.0)[0].startswith("nothing to prune; the newest 0 that lost and ")
        assert len(with_model(four)) == 5

    @pytest.mark.slow
    def test_what_this_home_did_not_register_stays(self, four: Any) -> None:
        """Whoever may write to MLflow has no file removed, not by the name of another version."""
        registry = registry_of(four)
        client, first = registry.runs.connection.client, registry.versions.get(1)
        source = client.get_model_version(four.model_name, "1").source
        client.create_model_version(
            four.model_name, source, first.run_id, tags={**first.tags, "verdict": "reject"}
        )
        lines = prune(four, 0)
        assert "left: version 6: this home does not vouch for it" in lines
        assert with_model(four) == [1, 6]

    def test_numbers_below_0_are_refused(self, four: Any) -> None:
        """So is what is no number."""
        for keep, days in ((-1, 0.0), (0, -1.0), (0, float("nan"))):
            with pytest.raises(UsageError, match="must be at least 0"):
                prune(four, keep, days)

    @pytest.mark.slow
    def test_a_file_that_somebody_removed_is_told(self, four: Any) -> None:
        """It is not called pruned."""
        (folder_of(four, 2) / MODEL_FILE).unlink()
        assert f"version 2 has no {MODEL_FILE}, and was not pruned" in prune(four, 3)
        with pytest.raises(PipelineError, match="are not those that were registered"):
            rollback(four, 2)

    @pytest.mark.slow
    def test_a_store_that_does_not_delete_is_told(
        self, four: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """S3 answers as if it had; the next pruning completes what the journal tells."""
        with monkeypatch.context() as patch:
            patch.setattr(stored_models, "delete_artifact", lambda *_: None)
            with pytest.raises(PipelineError, match=f"did not remove {MODEL_FILE} at .*delete"):
                prune(four, 3)
        assert "pruned" not in registry_of(four).versions.get(2).tags
        assert prune(four, 100)[-1].startswith("pruned 1 version, ")
        assert with_model(four) == [1, 3, 4, 5]
        assert len(Journal(four.home).read().all(Pruned)) == 1


class TestAPrunedVersion:
    """What is said of it, and what is still known."""

    @pytest.fixture
    def pruned(self, four: Any) -> Any:
        """Give the settings of a home whose version 2 is pruned."""
        prune(four, 3)
        return four

    @pytest.mark.sampled(0.5)
    @pytest.mark.slow
    @pytest.mark.parametrize("edited", [False, True], ids=["as it is", "tags edited away"])
    def test_it_is_never_called_changed(self, pruned: Any, edited: bool) -> None:
        """Whoever asks for its model hears the day; also if its tags were removed."""
        registry = registry_of(pruned)
        if edited:
            client = registry.runs.connection.client
            for tag in ("pruned", "artifact_sha256"):
                client.delete_model_version_tag(pruned.model_name, "2", tag)
        day = time.strftime("%Y-%m-%d")
        asked: list[Callable[[], Any]] = [lambda: trust(pruned, 2, "it is ours")]
        if not edited:  # an edited one is refused before
            asked += [lambda: rollback(pruned, 2), lambda: reproduce(pruned, 2)]
        for ask in asked:
            with pytest.raises(PipelineError, match=rf"^version 2 was pruned on {day} \d\d:\d\d: "):
                ask()
        assert registry.production.number() == 1

    def test_all_else_is_readable(self, pruned: Any) -> None:
        """Manifest, errors, lineage and history."""
        registry = registry_of(pruned)
        version = registry.versions.get(2)
        assert len(registry.versions.manifest(version).files) == 6
        assert registry.runs.artifact(version.run_id, "out_of_fold_errors.json") == b'{"ab": 1.0}'
        found = lineage(pruned, "old_01.csv")["versions"]
        assert [one["version"] for one in found] == [5, 4, 3, 2, 1]
        assert len(history(pruned)) == 1

    @pytest.mark.slow
    def test_a_restored_file_is_believed_and_stays(self, pruned: Any) -> None:
        """It is the one that was registered."""
        shutil.copy(folder_of(pruned, 1) / MODEL_FILE, folder_of(pruned, 2) / MODEL_FILE)
        assert prune(pruned, 3)[-1].startswith("nothing to prune")
        assert rollback(pruned, 2).startswith("rolled back: version 2 is production")


@pytest.mark.slow
@pytest.mark.usefixtures("fast_training")
class TestNights:
    """Real cycles with and without the files of those that lost."""

    def test_verdicts_are_those_of_an_unpruned_twin(
        self, history_of: History, settings_of: SettingsOf, tmp_path: Path
    ) -> None:
        """A challenge lost, a promotion, a rollback: each outcome, number and sentence."""
        hard = {"min_improvement": 90}

        def lose(home: Path) -> None:
            run_orchestrator(settings_of(home, **hard))

        found = []
        for name in ("twin", "pruned"):
            home, _ = history_of(DOMAINS["stems"], "a lost night", lose, tmp_path / name)
            settings = settings_of(home)
            if name == "pruned":
                assert prune(settings, 0)[-1].startswith("pruned 1 version, ")
            again = run_orchestrator(settings_of(home, **hard, random_state=1), force=True)
            write_recordings(home / "new_gts", 2 * BATCH, "new", seed=9, prefix="fresh")
            better = run_orchestrator(settings, force=True)
            rollback(settings, None)
            nights = [(one.outcome, one.message, one.facts) for one in (again, better)]
            found.append((nights, [one["to"] for one in history(settings)]))
        assert found[0] == found[1]
        assert again.outcome is Outcome.NOT_PROMOTED
        assert better.outcome is Outcome.PROMOTED

    def test_the_night_prunes_all_but_the_newest(
        self,
        four: Any,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """After its verdict; one that cannot is a warning, and the night is as good."""
        settings = dataclasses.replace(four, keep_losers=2, min_improvement=90)

        def refuse(*_: Any, **__: Any) -> Any:
            raise PermissionError("read-only")

        with monkeypatch.context() as patch:
            patch.setattr(pruning, "_remove", refuse)
            result = run_orchestrator(settings)
        assert result.outcome is Outcome.NOT_PROMOTED
        assert "nothing more was pruned, the next verdict tries again: read-only" in caplog.text
        assert with_model(settings) == [1, 2, 3, 4, 5, 6]
        run_orchestrator(settings, dry_run=True, force=True)
        assert with_model(settings) == [1, 2, 3, 4, 5, 6]
        Recorder().prune(dataclasses.replace(settings, keep_losers=0), result)
        Recorder().prune(settings, dataclasses.replace(result, outcome=Outcome.HEALTHY))
        assert with_model(settings) == [1, 2, 3, 4, 5, 6]
        Recorder().prune(settings, result)
        assert with_model(settings) == [1, 5, 6]


@pytest.mark.slow
def test_a_bucket_is_pruned_as_well(home: Path, tmp_path: Path, settings_of: SettingsOf) -> None:
    """Clients ask S3 themselves; that a server hands it on is seen in test_export_import.py."""
    import mlflow

    from register_first_model import register_first_model

    (tmp_path / "server").mkdir()
    store = f"sqlite:///{tmp_path}/server/mlflow.db"
    with (
        bucket("pruned") as s3,
        mlflow_server(store, tmp_path / "unused", **s3.environment) as address,
    ):
        settings = settings_of(home, tracking_uri=address, model_name="OnServer")
        mlflow.MlflowClient(address).create_experiment("OnServer", "s3://pruned/direct")
        register_first_model(settings)
        assert [add_loser(settings).number for _ in range(2)] == [2, 3]
        before = s3.names
        assert sum(one.endswith(MODEL_FILE) for one in before) == 3
        assert prune(settings, 1)[-1].startswith("pruned 1 version, ")
        (gone,) = {*before} - {*s3.names}
        assert gone.endswith(f"artifacts/{MODEL_FILE}")
        with pytest.raises(PipelineError, match="^version 2 was pruned on "):
            rollback(settings, 2)
        assert rollback(settings, 3).startswith("rolled back: version 3")
