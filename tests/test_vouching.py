"""What a home vouches for: homes of older pipelines, lost journals, and what does not verify."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, FAST, OLD_SEASON_FILES, ROOT, make_home
from sample_gts import write_recordings

from retraining.commands.trust import trust
from retraining.errors import PipelineError, TryLaterError
from retraining.files import hash_bytes
from retraining.journal import JOURNAL_NAME, Home, Journal, Vouch
from retraining.registry import open_registry
from retraining.registry.stored_models import StoredModels, folder_digest, older_folder_digest
from retraining.settings import Settings
from retraining.vouching import seed, vouch_for

SettingsOf = Callable[..., Any]
FIRST_EDITION = "2b7eed6"

LIFE_OF_AN_OLD_HOME = """
import sys
from pathlib import Path
import joblib
from sklearn.ensemble import ExtraTreesClassifier
import pipeline_orchestrator, register_first_model
import train_classification_model as module
from pipeline_settings import Settings
home, batch, n_folds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
module.make_classifier = lambda random_state=42: ExtraTreesClassifier(20, random_state=random_state)
result = module.train_classification_model(home / "used_gts", n_folds=n_folds, n_jobs=1)
pickle = home / "model" / "stem_classifier_postprocessing_v1.pkl"
joblib.dump(result.model, pickle)
pickle.chmod(0o600)
print(register_first_model.register_first_model(Settings(home=home)))
words = ["--min-new-files", str(batch), "--n-folds", str(n_folds), "--n-jobs", "1"]
sys.exit(pipeline_orchestrator.main([*words, "--threshold", "0.1", "--home", str(home)]))
"""


def artifact(home: Path, name: str) -> Path:
    """Return a file of the only version."""
    (found,) = (home / "mlflow_server" / "artifacts").rglob(name)
    return found


@pytest.fixture(scope="module")
def first_edition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the code of the first edition, or skip where its history is not at hand."""
    command = ["git", "archive", FIRST_EDITION]
    try:
        packed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"no git, or no commit {FIRST_EDITION}")
    folder = tmp_path_factory.mktemp("first_edition")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.slow
def test_a_home_of_the_first_edition_is_vouched_for(
    first_edition: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Made by that very code: its production and the one before, in one line of the log."""
    caplog.set_level(logging.INFO, "pipeline")
    home = make_home(tmp_path / "home")
    write_recordings(home / "used_gts", OLD_SEASON_FILES, "old", seed=1, prefix="old")
    write_recordings(home / "new_gts", BATCH, "new", seed=2, prefix="new")
    words = [str(home), str(BATCH), str(FAST["n_folds"])]
    command = [sys.executable, "-c", LIFE_OF_AN_OLD_HOME, *words]
    done = subprocess.run(command, cwd=first_edition, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "promoted: version 2" in done.stdout
    settings = Settings(home=home)
    registry = open_registry(settings)
    caplog.clear()
    seed(settings, registry)
    (said,) = caplog.messages
    assert said == f"began {home / JOURNAL_NAME}: it vouches for version 2 and version 1"
    vouches = Journal(home).read().vouches(settings.model_name)
    assert list(vouches) == [2, 1]
    for number, vouch in vouches.items():
        version = registry.versions.get(number)
        assert vouch.run_id == version.run_id
        with registry.models.verified_files(version) as folder:
            assert vouch.artifact_sha256 == older_folder_digest(folder)
        manifest = registry.runs.artifact(version.run_id, "training_files.json")
        assert manifest is not None
        assert vouch.manifest_sha256 == hash_bytes(manifest)


@pytest.fixture
def old_home(home: Path) -> Path:
    """Give a registered home without a journal, as an older pipeline leaves it."""
    (home / JOURNAL_NAME).unlink(missing_ok=True)
    return home


def seeded(settings: Any) -> dict[int, Vouch]:
    """Seed a home; return what it vouches for."""
    seed(settings, open_registry(settings))
    return Journal(settings.home).read().vouches(settings.model_name)


class TestSeeding:
    """`seed`: the first run of an older home, and the one after a lost journal."""

    def test_what_verifies_is_vouched_for(self, old_home: Path, settings_of: SettingsOf) -> None:
        """With the digests of the very files."""
        settings = settings_of(old_home)
        (vouch,) = seeded(settings).values()
        version = open_registry(settings).versions.get(1)
        folder = artifact(old_home, "model.skops").parent
        manifest = artifact(old_home, "training_files.json").read_bytes()
        digests = (folder_digest(folder), hash_bytes(manifest))
        assert vouch == Vouch(
            1, *digests, version.run_id, settings.model_name, version.tags["version_sha256"]
        )

    def test_it_happens_once(
        self, old_home: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The second time nothing is read from the store, written or said."""
        settings = settings_of(old_home)
        seeded(settings)
        before = (old_home / JOURNAL_NAME).read_bytes()
        caplog.clear()
        seed(settings, None)  # type: ignore[arg-type]
        assert (old_home / JOURNAL_NAME).read_bytes() == before
        assert caplog.messages == []

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("model.skops", "are not those that were registered"),
            ("training_files.json", "training_files.json"),
        ],
    )
    @pytest.mark.parametrize("change", ["edited", "missing"])
    def test_what_does_not_verify_is_named(
        self,
        old_home: Path,
        settings_of: SettingsOf,
        caplog: pytest.LogCaptureFixture,
        name: str,
        why: str,
        change: str,
    ) -> None:
        """And not vouched for; the home has its id all the same."""
        path = artifact(old_home, name)
        if change == "edited":
            path.write_bytes(path.read_bytes() + b" ")
        else:
            path.unlink()
        settings = settings_of(old_home)
        assert seeded(settings) == {}
        assert Journal(old_home).read().home_id
        (said,) = [one for one in caplog.messages if "vouches" in one]
        assert "it vouches for no version, not for version 1 (" in said
        assert why in said

    @pytest.mark.parametrize("tag", ["artifact_sha256", "manifest_sha256"])
    def test_a_version_without_a_digest_is_named(
        self, old_home: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture, tag: str
    ) -> None:
        """Whoever took it away; also where pickles are allowed."""
        settings = settings_of(old_home, allow_pickle=True)
        client = open_registry(settings).runs.connection.client
        client.delete_model_version_tag(settings.model_name, "1", tag)
        assert seeded(settings) == {}
        assert f"not for version 1 (version 1 has no {tag}: it was not" in caplog.text

    def test_an_outage_begins_nothing(
        self, old_home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The next run tries again, rather than never to vouch for what is well."""

        def fail(*_: object) -> None:
            raise TryLaterError("the store does not answer")

        settings = settings_of(old_home)
        with monkeypatch.context() as patch:
            patch.setattr(StoredModels, "registered_files", fail)
            with pytest.raises(TryLaterError):
                seeded(settings)
        assert not (old_home / JOURNAL_NAME).exists()
        assert list(seeded(settings)) == [1]

    def test_a_damaged_journal_is_not_seeded_over(
        self, old_home: Path, settings_of: SettingsOf
    ) -> None:
        """A person decides what becomes of it."""
        settings = settings_of(old_home)
        seeded(settings)
        content = (old_home / JOURNAL_NAME).read_bytes().replace(b"home", b"hole")
        (old_home / JOURNAL_NAME).write_bytes(content)
        with pytest.raises(PipelineError, match="is damaged or was edited: line 1"):
            seeded(settings)
        assert (old_home / JOURNAL_NAME).read_bytes() == content


def test_a_registered_home_vouches_for_its_first_version(home: Path) -> None:
    """Before it became production; there was nothing else to vouch for."""
    memory = Journal(home).read()
    assert len(memory.home_id) == 32
    assert [one.version for one in memory.all(Vouch)] == [1]


class TestVouching:
    """`vouch_for`: before a version becomes production."""

    def test_a_version_is_vouched_for_once(self, old_home: Path, settings_of: SettingsOf) -> None:
        """A repetition, as after a crash, changes nothing; a home without journal begins one."""
        settings = settings_of(old_home)
        registry = open_registry(settings)
        client, name = registry.runs.connection.client, settings.model_name
        client.delete_registered_model_alias(name, "production")
        for _ in range(2):
            vouch_for(settings, registry, registry.versions.get(1))
            memory = Journal(old_home).read()
            assert (memory.number, len(memory.all(Home)), len(memory.all(Vouch))) == (2, 1, 1)
            assert memory.all(Vouch)[0].version == 1

    def test_a_journal_that_it_begins_knows_production(
        self, old_home: Path, settings_of: SettingsOf
    ) -> None:
        """Where the first command of an older home is one that changes production."""
        settings = settings_of(old_home)
        registry = open_registry(settings)
        one = registry.versions.get(1)
        source = registry.runs.connection.client.get_model_version(settings.model_name, "1").source
        other = registry.runs.connection.client.create_model_version(
            settings.model_name, source, run_id=one.run_id, tags=dict(one.tags)
        )
        vouch_for(settings, registry, registry.versions.get(int(other.version)))
        assert list(Journal(old_home).read().vouches(settings.model_name)) == [1, 2]

    def test_what_does_not_verify_is_refused(self, old_home: Path, settings_of: SettingsOf) -> None:
        """Nothing is remembered of it."""
        settings = settings_of(old_home)
        artifact(old_home, "model.skops").write_bytes(b"")
        with pytest.raises(PipelineError, match="are not those that were registered"):
            trust(settings, 1, "a test")
        assert Journal(old_home).read().all(Vouch) == []

    def test_a_number_that_is_given_again_is_vouched_for_again(
        self, old_home: Path, settings_of: SettingsOf
    ) -> None:
        """The newest version was deleted, and its successor counts on from there."""
        settings = settings_of(old_home)
        registry = open_registry(settings)
        older = Vouch(1, "0" * 64, "0" * 64, "deleted", settings.model_name)
        Journal(old_home).append(older)
        vouch_for(settings, registry, registry.versions.get(1))
        memory = Journal(old_home).read()
        assert memory.all(Vouch)[0] == older
        assert memory.vouches(settings.model_name)[1].run_id == registry.versions.get(1).run_id
