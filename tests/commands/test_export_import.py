"""A model goes to another store with all its history: by `export` and `import`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from buckets import bucket
from conftest import DOMAINS, make_home, mlflow_server
from losers import add_loser, folder_of
from test_pipeline_orchestrator import registry_of

from pipeline_orchestrator import main, run_orchestrator
from retraining.archives import archive_written, extracted
from retraining.commands.export_model import export
from retraining.commands.history import history
from retraining.commands.import_model import import_model
from retraining.commands.lineage import lineage
from retraining.commands.prune import prune
from retraining.commands.rollback import rollback
from retraining.commands.transfer import KIND, Imported
from retraining.errors import PipelineError, StoppedBySignal, UsageError
from retraining.journal import Journal, Vouch
from retraining.outcome import Outcome
from retraining.registry.copies import Copies
from retraining.registry.facts import TAG_CREATED, TAG_IMPORTED, NotInRegistry
from retraining.registry.stored_models import MODEL_FILE, StoredModels
from retraining.training import load_training_module

SettingsOf = Callable[..., Any]
History = Callable[..., tuple[Path, Any]]
ARCHIVE = "stems.tar"
WORD = "moved from the other machine"


def live(home: Path, settings: Any) -> None:
    """Let a home have versions 1, 3 and 4: one deleted, one pruned, one promoted by hand."""
    for _ in range(3):
        add_loser(settings)
    registry = registry_of(settings)
    client, name = registry.runs.connection.client, settings.model_name
    registry.versions.describe(4, "not promoted: a sentence")
    client.set_registered_model_alias(name, "canary", "4")
    client.delete_model_version(name, "2")
    rollback(settings, 4)
    rollback(settings, 1)
    prune(settings, 0)
    deleted, *_ = [
        run for run in registry.copies._in_experiment() if "pipeline_to" in run.data.tags
    ]
    client.delete_run(deleted.info.run_id)
    client.delete_run(registry.versions.get(3).run_id)
    export(settings, home / ARCHIVE)


@pytest.fixture
def lived(history_of: History, settings_of: SettingsOf, tmp_path: Path) -> Any:
    """Give the settings of a home with a past."""
    home, _ = history_of(
        DOMAINS["stems"], "exported", lambda home: live(home, settings_of(home)), tmp_path / "dev"
    )
    return settings_of(home)


@pytest.fixture
def other(lived: Any, settings_of: SettingsOf, tmp_path: Path) -> Any:
    """Give the settings of a new home with the same recordings, and no store."""
    home = make_home(tmp_path / "prod")
    for name in ("used_gts", "new_gts"):
        shutil.copytree(lived.home / name, home / name, dirs_exist_ok=True)
    return settings_of(home)


def known(settings: Any) -> dict[str, Any]:
    """Return all that both sides must agree on."""
    registry = registry_of(settings)
    client, name = registry.runs.connection.client, settings.model_name
    runs = {
        run.info.run_id: run
        for run in registry.copies._in_experiment()
        if not run.data.tags.get(TAG_IMPORTED, "").endswith("unfinished")  # a twin, deleted
    }
    order = sorted(runs.values(), key=lambda run: (run.info.start_time, run.info.run_name))
    place = {run.info.run_id: number for number, run in enumerate(order)}
    versions = {}
    for version in registry.versions.all():
        found = client.get_model_version(name, str(version.number))
        tags = {key: text for key, text in version.tags.items() if key not in LEFT_OUT}
        versions[version.number] = (
            version.digest,
            version.created_ms,
            found.description or "",
            tags,
            place[version.run_id],
            registry.models.digest(version, pruned_too=True),
            registry.versions.manifest(version),
            registry.runs.trained_with(version.run_id),
        )
    found_lineage = lineage(settings, "old_01.csv")
    memory = Journal(settings.home).read()
    return {
        "versions": versions,
        "aliases": registry.versions.aliases(),
        "history": history(settings),
        "lineage": {key: found_lineage[key] for key in found_lineage if key != "file"},
        "runs": [_facts_of(client, run) for run in order],
        "vouched": [
            one.number for one in registry.versions.all() if registry.vouches.of(one, memory)
        ],
        "way back": [*registry.production.to_go_back_to(1)],
    }


LEFT_OUT = (TAG_IMPORTED, TAG_CREATED)


def _facts_of(client: Any, run: Any) -> tuple[Any, ...]:
    metrics = {
        key: [(one.value, one.timestamp, one.step) for one in points]
        for key in run.data.metrics
        for points in [client.get_metric_history(run.info.run_id, key)]
    }
    artifacts = sorted((one.path, one.file_size) for one in client.list_artifacts(run.info.run_id))
    inputs = [
        (
            *(one.dataset.name, one.dataset.digest, one.dataset.schema, one.dataset.profile),
            *sorted((tag.key, tag.value) for tag in one.tags),
        )
        for one in run.inputs.dataset_inputs
    ]
    return (
        (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
        run.info.lifecycle_stage,
        {key: text for key, text in run.data.tags.items() if key not in LEFT_OUT},
        run.data.params,
        metrics,
        artifacts,
        sorted(inputs),
    )


class TestAnotherHome:
    """From dev to prod."""

    @pytest.mark.slow
    def test_both_sides_are_equal(self, lived: Any, other: Any, tmp_path: Path) -> None:
        """Numbers, tags, times, metrics, artifacts, aliases, history, lineage, vouches."""
        path = tmp_path / "stems.tar"
        lines = export(lived, path)
        assert lines[0].startswith("exported 3 versions and ")
        assert import_model(other, path, WORD)[-1].endswith(": version 1 is production")
        before = known(lived)
        assert known(other) == before
        assert sorted(before["versions"]) == [1, 3, 4]
        assert before["aliases"] == {"production": 1, "previous_production": 4, "canary": 4}
        (word,) = Journal(other.home).read().all(Imported)
        assert (word.reason, word.versions) == (WORD, 3)
        assert word.home_id == Journal(lived.home).read().home_id
        # It loads and predicts there; the pruned one is known to be one.
        registry, training = registry_of(other), load_training_module(other)
        registry.models.load_and_try(registry.versions.get(4), training)
        with pytest.raises(PipelineError, match="^version 3 was pruned on "):
            rollback(other, 3)

    @pytest.mark.slow
    def test_a_second_time_changes_nothing(self, lived: Any, other: Any, tmp_path: Path) -> None:
        """Not even what people did since."""
        path = lived.home / ARCHIVE
        import_model(other, path, WORD)
        rollback(other, 4)
        add_loser(other)
        journal, before = Journal(other.home).path.read_bytes(), known(other)
        assert import_model(other, path) == [
            f"{path} was imported into this store before; nothing changed"
        ]
        assert (Journal(other.home).path.read_bytes(), known(other)) == (journal, before)

    def test_a_person_must_say_why(self, lived: Any, other: Any, tmp_path: Path) -> None:
        """Before there is anything of it."""
        path = lived.home / ARCHIVE
        with pytest.raises(UsageError, match="--reason TEXT"):
            import_model(other, path, " ")
        assert not other.database.exists()
        assert not Journal(other.home).path.exists()

    def test_other_versions_are_in_the_way(
        self, lived: Any, home: Path, settings_of: SettingsOf, tmp_path: Path
    ) -> None:
        """Two homes never feed one registered model."""
        path, settings = lived.home / ARCHIVE, settings_of(home)
        before = known(settings)
        with pytest.raises(PipelineError, match=r"that are not of this archive \(1\): import into"):
            import_model(settings, path, WORD)
        assert known(settings) == before

    def test_another_model_is_named(
        self, lived: Any, other: Any, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """With the flag that takes it."""
        path = lived.home / ARCHIVE
        settings = settings_of(other.home, model_name="Oaks")
        with pytest.raises(PipelineError, match=f"add --model-name {lived.model_name}"):
            import_model(settings, path, WORD)

    def test_a_file_that_is_there_is_not_overwritten(self, lived: Any, tmp_path: Path) -> None:
        """Somebody may need it."""
        path = tmp_path / "stems.tar"
        path.write_text("precious")
        with pytest.raises(PipelineError, match="is there already"):
            export(lived, path)
        assert path.read_text() == "precious"
        assert not list(tmp_path.glob(".pipeline-*"))

    @pytest.mark.slow
    def test_damaged_files_get_no_vouch(self, lived: Any, other: Any, tmp_path: Path) -> None:
        """They are there as they were, and loaded on neither side."""
        path = tmp_path / "damaged.tar"
        (folder_of(lived, 4) / MODEL_FILE).write_bytes(b"changed")
        export(lived, path)
        lines = import_model(other, path, WORD)
        assert lines[0] == "version 4 is not as it was registered: not vouched for"
        assert 4 not in [one.version for one in Journal(other.home).read().all(Vouch)]
        for settings in (lived, other):
            with pytest.raises(PipelineError, match="version 4 is|version 4 are not"):
                rollback(settings, 4)

    @pytest.mark.slow
    def test_a_killed_one_is_completed(
        self, lived: Any, other: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the files of a version and its number, and after a reply that was lost."""
        path = lived.home / ARCHIVE
        adopt = StoredModels.adopt

        def die_after(*values: Any) -> Any:
            adopt(*values)
            raise StoppedBySignal(9)

        def die(*_: Any) -> Any:
            raise StoppedBySignal(9)

        for owner, name, end in (
            (Copies, "_write_run", die),
            (StoredModels, "adopt", die_after),
            (Copies, "complete", die),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, end)
                with pytest.raises(StoppedBySignal):
                    import_model(other, path, WORD)
            client = registry_of(other).runs.connection.client
            with pytest.raises(NotInRegistry):
                registry_of(other).production.champion()
        experiment = client.get_experiment_by_name(other.model_name).experiment_id
        (one, *_) = registry_of(other).copies._in_experiment()
        mark = one.data.tags[TAG_IMPORTED]
        client.create_run(experiment, tags={TAG_IMPORTED: f"{mark}, unfinished"})
        import_model(other, path, WORD)
        assert known(other) == known(lived)
        assert len(client.search_logged_models([experiment])) == 3
        assert len(Journal(other.home).read().all(Imported)) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("fast_training")
def test_an_embedded_store_goes_to_a_server(
    home: Path, settings_of: SettingsOf, tmp_path: Path
) -> None:
    """And on to another home. The first one goes on there: its nights ask nothing twice."""
    lived = settings_of(home, min_improvement=90)
    assert run_orchestrator(lived).outcome is Outcome.NOT_PROMOTED
    asked = known(lived)
    assert len(asked["runs"]) == 4  # the first model, its change, a monitoring, a retraining
    path = tmp_path / "stems.tar"
    export(lived, path)
    (tmp_path / "server").mkdir()
    store = f"sqlite:///{tmp_path}/server/mlflow.db"
    with (
        bucket("imported") as s3,
        mlflow_server(store, f"s3://{s3.name}/stems", **s3.environment) as address,
    ):
        settings = dataclasses.replace(lived, tracking_uri=address)
        words = ["import", str(path), "--home", str(home), "--tracking-uri", address]
        assert main(words) == 0
        assert known(settings) == asked
        assert main(words) == 0
        assert run_orchestrator(settings).outcome is Outcome.ALREADY_JUDGED
        assert sum(one.endswith(MODEL_FILE) for one in s3.names) == 2
        assert prune(settings, 0)[-1].startswith("pruned 1 version, ")
        assert sum(one.endswith(MODEL_FILE) for one in s3.names) == 1
        with pytest.raises(PipelineError, match="^version 2 was pruned on "):
            rollback(settings, 2)
        back = tmp_path / "back.tar"
        export(settings, back)
        third = dataclasses.replace(lived, home=make_home(tmp_path / "third"))
        for name in ("used_gts", "new_gts"):
            shutil.copytree(home / name, third.home / name, dirs_exist_ok=True)
        import_model(third, back, WORD)
        assert known(third) == known(settings)
    assert run_orchestrator(third).outcome is Outcome.ALREADY_JUDGED
    assert run_orchestrator(lived).outcome is Outcome.ALREADY_JUDGED  # also in the old store


def edited(path: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Write an archive again with another model.json and right digests."""
    with (
        extracted(path, KIND, most_files=1000) as archive,
        archive_written(target, KIND, archive.facts) as writer,
    ):
        for name in archive.sizes:
            content = (archive.folder / name).read_bytes()
            if name == "model.json":
                found = json.loads(content)
                change(found)
                content = json.dumps(found).encode()
            writer.add_bytes(name, content)
    return target


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a number that is a text": lambda found: found["versions"][0].update(number="1"),
    "a number twice": lambda found: found["versions"].append(found["versions"][0]),
    "a number beyond all": lambda found: found["versions"][0].update(number=10**9),
    "no number": lambda found: found["versions"][0].pop("number"),
    "a tag that is none": lambda found: found["versions"][0]["tags"].update(verdict=[1]),
    "a run that is not there": lambda found: found["runs"].clear(),
    "an alias of nothing": lambda found: found["model"]["aliases"].update(production=9),
    "a metric of nothing": lambda found: found["runs"][0]["metrics"].append([]),
    "a list in its place": lambda found: found.update(versions=[[]]),
    "a state that is none": lambda found: found["runs"][0].update(status="RUNNING"),
}


class TestAHostileArchive:
    """It is not trusted, whatever it says."""

    @pytest.mark.parametrize("edit", EDITS)
    def test_what_no_export_writes_is_refused(
        self, lived: Any, other: Any, tmp_path: Path, edit: str
    ) -> None:
        """In one line; there is nothing of it in the store."""
        path = lived.home / ARCHIVE
        bad = edited(path, tmp_path / "bad.tar", EDITS[edit])
        with pytest.raises(PipelineError, match="bad.tar holds what no export writes"):
            import_model(other, bad, WORD)
        assert not other.database.exists()

    def test_a_changed_file_is_found(self, lived: Any, other: Any, tmp_path: Path) -> None:
        """Whatever else is right."""
        path = lived.home / ARCHIVE
        content = path.read_bytes()
        with tarfile.open(path) as tar:
            member = next(one for one in tar if one.name.endswith(MODEL_FILE))
        place = member.offset_data + 5
        path.write_bytes(content[:place] + b"x" + content[place + 1 :])
        with pytest.raises(PipelineError, match="is not what was put in"):
            import_model(other, path, WORD)
