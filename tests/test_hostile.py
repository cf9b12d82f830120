"""Artifact writers and registry editors: what they can do, and that it gets them nothing.

Droppers and other users have tests/test_hostile_droppers.py, texts tests/test_hostile_text.py,
servers tests/registry/test_exchanges.py, clusters tests/test_dask_cluster.py, code of versions
tests/test_confined.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, FAST_WORDS, Domain, copy_home, script, write_mislabelled
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from sample_gts import write_recordings

from pipeline_orchestrator import load_champion, main, run_orchestrator
from retraining import cross_validation
from retraining.commands.history import history
from retraining.commands.trust import trust
from retraining.errors import PipelineError
from retraining.journal import JOURNAL_NAME, Journal, Vouch
from retraining.outcome import Outcome
from retraining.registry import open_registry
from retraining.registry.facts import SEALED_TAGS, NotInRegistry
from retraining.registry.stored_models import folder_digest, older_folder_digest
from retraining.training import load_training_module
from retraining.vouching import seed, vouch_for

SettingsOf = Callable[..., Any]
MODULE = "train_classification_model.py"
pytestmark = pytest.mark.usefixtures("fast_training")


def client_of(settings: Any) -> tuple[Any, str]:
    """Return MLflow's client, as anybody has it, and the model's name."""
    return open_registry(settings).runs.connection.client, settings.model_name


def artifacts(home: Path, number: int, name: str) -> Path:
    """Return a file of a version, or of the run that made it, in the artifact store."""
    found = sorted(
        (home / "mlflow_server/artifacts").rglob(name), key=lambda path: path.stat().st_mtime
    )
    return found[number - 1]


def assert_production(settings: Any, number: int) -> None:
    """Check that nothing was promoted."""
    assert open_registry(settings).production.number() == number


@pytest.fixture
def promoted(
    history_of: Callable[..., tuple[Path, Any]],
    domain: Domain,
    settings_of: SettingsOf,
    tmp_path: Path,
) -> Path:
    """Give a home whose production, version 2, was trained by a cycle."""

    def promote(home: Path) -> None:
        assert run_orchestrator(settings_of(home)).outcome is Outcome.PROMOTED

    home, _ = history_of(domain, "promoted for attacks", promote, tmp_path / "home")
    return home


# --- Whoever may write the artifact store ---


class TestArtifactWriters:
    """Every artifact that decides anything is the one that was registered."""

    @pytest.fixture
    def forgetful(self, promoted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Give a home whose next challenger is better on new recordings and forgets the old."""
        write_mislabelled(promoted / "new_gts", seed=5)
        train = cross_validation.train

        def train_a_forgetful_one(*values: Any, **named: Any) -> Any:
            result, n_known = train(*values, **named)
            result.out_of_fold["error"] = 60.0 * ~result.out_of_fold.index.str.startswith("wrong")
            return result, n_known

        monkeypatch.setattr(cross_validation, "train", train_a_forgetful_one)
        return promoted

    @pytest.mark.parametrize(
        "content", ["all 100", pytest.param("[" * 10**5, marks=pytest.mark.slow)]
    )
    def test_rewriting_the_champions_errors_promotes_no_forgetful_challenger(
        self, forgetful: Path, settings_of: SettingsOf, content: str
    ) -> None:
        """Whether they read or not: it cannot be said whether it forgets."""
        settings = settings_of(forgetful)
        path = artifacts(forgetful, 1, "out_of_fold_errors.json")
        if content == "all 100":
            content = json.dumps(dict.fromkeys(json.loads(path.read_text()), 100.0))
        path.write_text(content)
        with pytest.raises(PipelineError, match=r"^out_of_fold_errors\.json of version 2 is not"):
            run_orchestrator(settings)
        assert_production(settings, 2)

    @pytest.mark.slow
    def test_removing_them_promotes_none_either(
        self, forgetful: Path, settings_of: SettingsOf
    ) -> None:
        """It was registered with them."""
        settings = settings_of(forgetful)
        artifacts(forgetful, 1, "out_of_fold_errors.json").unlink()
        with pytest.raises(PipelineError, match=r"errors\.json of version 2 is missing"):
            run_orchestrator(settings)
        assert_production(settings, 2)

    def test_the_untouched_twin_is_not_promoted(
        self, forgetful: Path, settings_of: SettingsOf
    ) -> None:
        """So the tests above can fail."""
        result = run_orchestrator(settings_of(forgetful))
        assert result.facts["verdict"]["reasons"] == ["FORGETS"]

    def test_rewriting_the_example_makes_no_version_load(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """It comes from the very copy that was verified."""
        settings = settings_of(home)
        artifacts(home, 1, "input_example.json").write_text("[]")
        registry = open_registry(settings)
        with pytest.raises(PipelineError, match="are not those that were registered"):
            registry.models.load_and_try(registry.versions.get(1), load_training_module(settings))

    def test_a_line_break_in_a_name_makes_no_two_folders_alike(self, tmp_path: Path) -> None:
        """Two files under names that write the lines of one another."""
        one, other = tmp_path / "one", tmp_path / "other"
        for folder in (one, other):
            folder.mkdir()
        (one / "a").write_bytes(b"1")
        (one / "b").write_bytes(b"2")
        lines = [f"{digest}  {name}" for name, digest in digests_of(one)]
        (other / f"a\n{lines[1]}").write_bytes(b"1")
        assert folder_digest(one) != folder_digest(other)
        assert older_folder_digest(other) is None
        assert older_folder_digest(one) is not None

    def test_a_file_that_mlflow_would_leave_is_left_out_at_the_top_only(
        self, tmp_path: Path
    ) -> None:
        """Under the same name it may stand elsewhere, and be run."""
        (tmp_path / "code").mkdir()
        before = folder_digest(tmp_path)
        (tmp_path / "registered_model_meta").write_text("anything")
        assert folder_digest(tmp_path) == before
        (tmp_path / "code" / "registered_model_meta").write_text("anything")
        assert folder_digest(tmp_path) != before

    @pytest.mark.parametrize("name", ["model.skops", "training_files.json"])
    def test_a_sparse_terabyte_is_not_copied(
        self, home: Path, settings_of: SettingsOf, name: str
    ) -> None:
        """Refused before a byte of it is: the limit is told."""
        with artifacts(home, 1, name).open("r+b") as stream:
            stream.truncate(10**12)
        begun = time.monotonic()
        with pytest.raises(PipelineError, match=r"more than 2000 MB|larger than 2000 MB"):
            run_orchestrator(settings_of(home))
        assert time.monotonic() - begun < 20

    def test_a_thousand_small_files_are_not_copied_either(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Nor a folder in a folder in a folder."""
        deep = artifacts(home, 1, "model.skops").parent
        for _ in range(500):
            deep = deep / "a"
        deep.mkdir(parents=True)
        for number in range(600):
            (deep / f"{number}").touch()
        with pytest.raises(PipelineError, match="or more than 1000; nothing was copied"):
            run_orchestrator(settings_of(home))


def digests_of(folder: Path) -> list[tuple[str, str]]:
    """Return name and SHA-256 of the files of a folder, as they are digested."""
    from retraining.files import hash_file

    return [(path.name, hash_file(path)) for path in sorted(folder.iterdir())]


# --- Whoever may edit the registry ---


def evil_twin(home: Path, settings: Any, target: Path) -> int:
    """Copy version 1 with one more line of code, forge its digests, make it production."""
    client, name = client_of(settings)
    source = Path(client.get_model_version_download_uri(name, "1").removeprefix("file://"))
    folder = shutil.copytree(source, home / "mlflow_server/artifacts/twin")
    with (folder / "code" / MODULE).open("a") as stream:
        stream.write(f"\nimport pathlib\npathlib.Path({str(target)!r}).write_text('ran')\n")
    version = client.get_model_version(name, "1")
    twin = client.create_model_version(
        name,
        str(folder),
        run_id=version.run_id,
        tags={**version.tags, "artifact_sha256": folder_digest(folder)},
    )
    client.set_registered_model_alias(name, "production", twin.version)
    return int(twin.version)


class TestRegistryEditors:
    """Who may edit tags and aliases names production; this home says what it runs."""

    @pytest.mark.slow
    @pytest.mark.sampled(0.4)
    @pytest.mark.parametrize("command", ["run", "dry run", "predict", "reproduce", "rollback"])
    def test_a_forged_version_with_code_is_not_run(
        self, home: Path, settings_of: SettingsOf, tmp_path: Path, command: str
    ) -> None:
        """Version 1 with one more line, its digest beside it, the alias on it."""
        target, settings = tmp_path / "ran", settings_of(home, allow_pickle=True)
        number = evil_twin(home, settings, target)
        recording = str(next((home / "new_gts").glob("*.csv")))
        words = {
            "run": ["run"],
            "dry run": ["run", "--dry-run"],
            "predict": ["predict", recording],
            "reproduce": ["reproduce", str(number)],
            "rollback": ["rollback", "--to", str(number)],
        }[command]
        if command == "rollback":
            client, name = client_of(settings)
            client.set_registered_model_alias(name, "production", "1")
        done = script("pipeline_orchestrator.py", *words, *FAST_WORDS, "--allow-pickle", home=home)
        assert done.returncode == 1, done.stderr
        assert f"version {number} is not one that this home registered" in done.stderr
        assert f"python pipeline_orchestrator.py trust --home {home} " in done.stderr
        assert f" {number} --reason " in done.stderr
        assert "Traceback" not in done.stderr
        assert not target.exists()

    def test_status_tells_it_and_archives_nothing_on_its_word(
        self,
        home: Path,
        settings_of: SettingsOf,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """A manifest that names the new files would take them out of the evidence."""
        settings = settings_of(home)
        evil_twin(home, settings, tmp_path / "ran")
        before = sorted(path.name for path in (home / "new_gts").iterdir())
        with pytest.raises(PipelineError, match="is not one that this home registered"):
            run_orchestrator(settings)
        assert main(["status", *FAST_WORDS, "--home", str(home)]) == 1
        assert "version 2 is not one that this home registered" in capsys.readouterr().out
        assert sorted(path.name for path in (home / "new_gts").iterdir()) == before

    @pytest.mark.slow
    def test_a_person_who_trusts_it_is_in_the_history(
        self,
        home: Path,
        settings_of: SettingsOf,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """With who and when; it runs from then on, and not when it is changed again."""
        settings, target = settings_of(home), tmp_path / "ran"
        number = evil_twin(home, settings, target)
        words = [str(number), "--reason", "from our other lab", "--home", str(home)]
        assert main(["trust", *words]) == 0
        assert "version 2 is trusted from now on: from our other lab" in capsys.readouterr().out
        assert main(["history", "--json", "--home", str(home)]) == 0
        (told,) = json.loads(capsys.readouterr().out)["trusted"]
        assert (told["version"], told["reason"]) == (2, "from our other lab")
        assert "@" in told["who"]
        assert told["at"][:4].isdigit()
        run_orchestrator(settings, dry_run=True)
        assert target.exists()
        client, name = client_of(settings)
        client.set_model_version_tag(name, "2", "error_name", "another")
        with pytest.raises(PipelineError, match="is not what this home vouches for"):
            run_orchestrator(settings, dry_run=True)

    def test_no_reason_is_no_trust(self, home: Path, settings_of: SettingsOf) -> None:
        """Somebody will ask."""
        with pytest.raises(PipelineError, match="--reason must say why"):
            trust(settings_of(home), 1, " ")

    def test_an_edited_tag_of_production_stops_the_night(
        self, promoted: Path, settings_of: SettingsOf
    ) -> None:
        """Each of them decides something: which files, which metric, which unit."""
        settings = settings_of(promoted)
        client, name = client_of(settings)
        before = dict(client.get_model_version(name, "2").tags)
        assert before.keys() >= set(SEALED_TAGS)
        training = load_training_module(settings)
        for tag in SEALED_TAGS:
            for value in ("edited", None):
                if value is None:
                    client.delete_model_version_tag(name, "2", tag)
                else:
                    client.set_model_version_tag(name, "2", tag, value)
                with pytest.raises(PipelineError, match="is not what this home vouches for"):
                    load_champion(open_registry(settings), training)
            client.set_model_version_tag(name, "2", tag, before[tag])
        assert load_champion(open_registry(settings), training).number == 2

    def test_another_version_under_a_number_that_was_deleted_is_not_run(
        self, promoted: Path, settings_of: SettingsOf
    ) -> None:
        """MLflow gives the number again, with any tags."""
        settings = settings_of(promoted)
        client, name = client_of(settings)
        version = client.get_model_version(name, "2")
        run_of_1 = client.get_model_version(name, "1").run_id
        client.delete_model_version(name, "2")
        made = client.create_model_version(name, version.source, run_id=run_of_1, tags=version.tags)
        client.set_registered_model_alias(name, "production", made.version)
        write_recordings(promoted / "new_gts", BATCH, "old", seed=3, prefix="third")
        with pytest.raises(PipelineError, match=f"version {made.version} is not "):
            run_orchestrator(settings)

    def test_a_lost_journal_believes_no_shared_store(
        self, home: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its own file, which nobody else may write, it does; then a person must say so."""
        (home / JOURNAL_NAME).unlink()
        moved = (home / "mlflow_server/backend_db/mlflow.db").rename(home.parent / "shared.db")
        shared = settings_of(home, tracking_uri=f"sqlite:///{moved}")
        with pytest.raises(PipelineError, match='trust 1 --reason "'):
            run_orchestrator(shared)
        assert "not for version 1 (others may edit that store)" in caplog.text
        trust(shared, 1, "it was ours before the disk broke")
        assert run_orchestrator(shared, dry_run=True).outcome is Outcome.PROMOTED

    def test_edited_runs_stop_nothing_and_are_named(
        self, promoted: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Numbers that are none, no numbers, nothing: history, status and rollback go on."""
        settings = settings_of(promoted)
        client, name = client_of(settings)
        registry = open_registry(settings)
        (change, *_) = client.search_runs(
            [client.get_experiment_by_name(name).experiment_id],
            "attributes.run_name = 'ModelPromotion' and tags.pipeline_to = '2'",
        )
        for key, value in {"pipeline_from": "1e9", "pipeline_to": "9" * 5000}.items():
            client.set_tag(change.info.run_id, key, value)
        assert [one["event"] for one in history(settings)] == ["promotion", "registration"]
        assert f"the tag 'pipeline_to' of run {change.info.run_id} reads '999" in caplog.text
        assert "it is left out" in caplog.text
        # What the home itself remembers decides about the probation.
        assert registry.production.on_probation_against(registry.versions.get(2)) == 1

    def test_a_forged_run_leads_no_rollback_elsewhere(
        self, promoted: Path, settings_of: SettingsOf
    ) -> None:
        """Whoever may write runs says what was production before."""
        settings = settings_of(promoted)
        client, name = client_of(settings)
        run = client.create_run(
            client.get_experiment_by_name(name).experiment_id,
            tags={"pipeline_from": "7", "pipeline_to": "2", "pipeline_event": "promotion"},
            run_name="ModelPromotion",
        )
        client.set_terminated(run.info.run_id)
        assert [*open_registry(settings).production.to_go_back_to(2)] == [1]

    def test_a_word_of_an_older_pipeline_is_renewed_over_all_that_decides(
        self, promoted: Path, settings_of: SettingsOf
    ) -> None:
        """It was over the model and what it learnt alone."""
        settings = settings_of(promoted)
        registry = open_registry(settings)
        version = registry.versions.get(2)
        (promoted / JOURNAL_NAME).unlink()
        Journal(promoted).append(
            Vouch(
                version=2,
                artifact_sha256=version.tags["artifact_sha256"],
                manifest_sha256=version.tags["manifest_sha256"],
                run_id=version.run_id,
                model_name=settings.model_name,
            )
        )
        registry.vouches.check(version)
        seed(settings, registry)
        client, name = client_of(settings)
        client.set_model_version_tag(name, "2", "out_of_fold_sha256", "none")
        with pytest.raises(PipelineError, match="version 2 is not what this home vouches for"):
            registry.vouches.check(registry.versions.get(2))

    def test_a_manifest_that_was_edited_is_not_trusted_either(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """The next run would refuse it."""
        artifacts(home, 1, "training_files.json").write_text('{"files": []}')
        with pytest.raises(PipelineError, match="is not the one that was registered"):
            trust(settings_of(home), 1, "a test")

    @pytest.mark.parametrize("number", [0, -1, 10**30])
    def test_a_number_that_no_version_has(
        self, home: Path, settings_of: SettingsOf, number: int
    ) -> None:
        """Not to be tried again later."""
        with pytest.raises(NotInRegistry, match="there is no version"):
            trust(settings_of(home), number, "a test")

    def test_two_stores_may_count_from_one(self, home: Path, settings_of: SettingsOf) -> None:
        """What was said of version 1 of another store is no word against this one."""
        settings = settings_of(home)
        version = open_registry(settings).versions.get(1)
        other = replace(version, run_id="of another store")
        vouch_for(settings, open_registry(settings), other)
        open_registry(settings).vouches.check(version)

    def test_a_forged_run_ends_no_probation(self, promoted: Path, settings_of: SettingsOf) -> None:
        """Whoever may write runs says that version 2 has met new recordings."""
        settings = settings_of(promoted)
        client, name = client_of(settings)
        run = client.create_run(
            client.get_experiment_by_name(name).experiment_id,
            tags={"pipeline_champion": "2", "pipeline_outcome": "healthy"},
            run_name="ModelMonitoring",
        )
        client.log_metric(run.info.run_id, "mean_error", 1.0)
        client.set_terminated(run.info.run_id)
        registry = open_registry(settings)
        assert registry.production.on_probation_against(registry.versions.get(2)) == 1


# --- Anything, anywhere ---

ANY_TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["1e9", "-1", "nan", "²", "9" * 4000, "\x1b[2J", "null", "{}", "../../x"]),
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
ANY_CONTENT = st.one_of(
    ANY_JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
    st.sampled_from([b"[" * 10**5, b"9" * 5000, b"\xff\xfe", b'{"files": [{"name": "../x"}]}']),
)
VERSION_TAGS = st.sampled_from([*SEALED_TAGS, "verdict", "rolled_back", "pipeline_cycle_id"])
RUN_TAGS = st.sampled_from(
    [
        *("pipeline_from", "pipeline_to", "pipeline_event", "pipeline_champion", "error_unit"),
        *(
            "pipeline_outcome",
            "pipeline_batch",
            "pipeline_who",
            "pipeline_why",
            "pipeline_cycle_id",
        ),
    ]
)
ARTIFACTS = st.sampled_from(
    ["training_files.json", "out_of_fold_errors.json", "look.json", "comparison.json"]
)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("version tag"), VERSION_TAGS, ANY_TEXT),
        st.tuples(st.just("run tag"), RUN_TAGS, ANY_TEXT),
        st.tuples(st.just("metric"), st.sampled_from(["mean_error", "recordings"]), st.floats()),
        st.tuples(st.just("artifact"), ARTIFACTS, ANY_CONTENT),
        st.tuples(st.just("reason"), ANY_TEXT, ANY_CONTENT),
    ),
    min_size=1,
    max_size=4,
)


def edit(home: Path, settings: Any, edits: list[tuple[str, Any, Any]]) -> None:
    """Do to a home's store and rejected files what somebody else might."""
    client, name = client_of(settings)
    experiment = client.get_experiment_by_name(name).experiment_id
    for kind, key, value in edits:
        if kind == "artifact":
            for path in (home / "mlflow_server/artifacts").rglob(key):
                path.write_bytes(value)
            continue
        if kind == "reason":
            rejected = home / "new_gts" / "rejected"
            rejected.mkdir(exist_ok=True)
            with contextlib.suppress(OSError, ValueError):
                (rejected / f"{key}.csv").write_bytes(b"a\n1\n")
                (rejected / f"{key}.csv.reason.json").write_bytes(value)
            continue
        with contextlib.suppress(MlflowException, ValueError):
            if kind == "version tag":
                client.set_model_version_tag(name, "2", key, value)
            for run in client.search_runs([experiment]):
                if kind == "run tag":
                    client.set_tag(run.info.run_id, key, value)
                elif kind == "metric":
                    client.log_metric(run.info.run_id, key, value)


def commands(home: Path) -> Iterator[list[str]]:
    """Give command lines that read what may have been edited."""
    learnt = next((home / "used_gts").glob("*.csv")).name
    yield ["status"]
    yield ["history"]
    yield ["history", "--at", "2026-01-01"]
    yield ["lineage", learnt]
    yield ["requeue"]
    yield ["run", "--dry-run"]
    yield ["rollback"]
    yield ["status", "--json"]


def survive(
    template: Path,
    tmp_path: Path,
    settings_of: SettingsOf,
    edits: list[tuple[str, Any, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Edit a copy of a home and run the commands: lines, exit statuses, no promotion."""
    home = copy_home(template, tmp_path / "twin")
    try:
        settings = settings_of(home)
        edit(home, settings, edits)
        capsys.readouterr()
        for words in commands(home):
            logging.getLogger("pipeline").setLevel(logging.WARNING)
            status = main([*words, *FAST_WORDS, "--home", str(home)])
            told = capsys.readouterr()
            assert "Traceback" not in told.err, (words, edits, told.err)
            assert status in (0, 1, 2, 75), (words, status)
            assert all(line.isprintable() for line in told.out.splitlines()), told.out
            assert all(line.isprintable() for line in told.err.splitlines()), told.err
        assert open_registry(settings).production.number() in (1, 2)
    finally:
        shutil.rmtree(home)


def for_any_edits(max_examples: int, **more: Any) -> Callable[[Callable[..., None]], Any]:
    """Let a test run with so many sets of edits."""
    bounded = hypothesis_settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        **more,
    )
    return lambda test: bounded(given(edits=EDITS)(test))


@for_any_edits(5, derandomize=True)
def test_nothing_that_stands_in_the_store_is_a_traceback(
    promoted: Path,
    settings_of: SettingsOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    edits: list[tuple[str, Any, Any]],
) -> None:
    """Some edits; many more among the slow tests."""
    survive(promoted, tmp_path, settings_of, edits, capsys)


@pytest.mark.slow
@pytest.mark.sampled(0.25)
@pytest.mark.parametrize("lot", range(4))
@for_any_edits(15)
def test_nothing_at_all_that_stands_in_the_store_is_a_traceback(
    promoted: Path,
    settings_of: SettingsOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lot: int,
    edits: list[tuple[str, Any, Any]],
) -> None:
    """Tags, metrics, artifacts, names and reasons of any content, others every time."""
    survive(promoted, tmp_path, settings_of, edits, capsys)


@pytest.mark.slow
@pytest.mark.sampled(0.2)
@pytest.mark.parametrize("lot", range(5))
@for_any_edits(5)
def test_no_edit_promotes_what_the_untouched_twin_does_not(
    promoted: Path,
    settings_of: SettingsOf,
    tmp_path: Path,
    lot: int,
    edits: list[tuple[str, Any, Any]],
) -> None:
    """A night whose challenger is no better, lived again after each set of edits."""
    home = copy_home(promoted, tmp_path / "twin")
    try:
        settings = settings_of(home, threshold=0.1, min_improvement=50.0)
        write_recordings(home / "new_gts", BATCH, "new", seed=11, prefix="night")
        edit(home, settings, edits)
        with contextlib.suppress(PipelineError):
            assert run_orchestrator(settings).outcome is not Outcome.PROMOTED
        assert open_registry(settings).production.number() in (1, 2)
    finally:
        shutil.rmtree(home)
