"""Where pages are kept: every way in which a cycle ends leaves one, and nothing needs it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import BATCH, FAST, OLD_SEASON_FILES, ROOT, copy_home
from sample_gts import write_recordings
from sample_pages import Reader, read
from small import make_fast_classifier

import train_classification_model as stems
from pipeline_orchestrator import run_orchestrator
from retraining import cross_validation, files, intake, recovery
from retraining.commands.rollback import rollback
from retraining.errors import PipelineError
from retraining.outcome import Outcome
from retraining.registry import Registry, open_registry
from retraining.registry.judgements import Judgements
from retraining.registry.versions import Versions
from retraining.report import charts, keep, page
from retraining.settings import Settings
from retraining.training import ERROR

SettingsOf = Callable[..., Any]


def pages(home: Path) -> list[Path]:
    """Return the pages of a home, the oldest first."""
    return sorted((home / "reports").iterdir(), key=lambda path: path.stem)


def only_page(home: Path, outcome: str) -> Reader:
    """Read the one page of a home and check the outcome in its name."""
    (path,) = pages(home)
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d-\d\d-\d\d_{outcome}\.html", path.name)
    return read(path.read_text())


def newest_run(registry: Registry, name: str) -> Any:
    """Return the newest run of a name, as MLflow has it."""
    (run, *_) = registry.runs._finished(name, {})
    return run


def artifacts(settings: Any, name: str) -> set[str]:
    """Return the files of the newest run of a name."""
    registry = open_registry(settings)
    run_id = newest_run(registry, name).info.run_id
    return {one.path for one in registry.runs.connection.client.list_artifacts(run_id)}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was warned of."""
    return [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]


@dataclass(frozen=True)
class Story:
    """A promotion and a rollback, and what they left."""

    settings: Any
    result: Any
    rollback: str
    pages: list[Path]


@pytest.fixture(scope="module")
def story(registered_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Give the home after a promotion and a rollback."""
    values: dict[str, Any] = FAST
    home = copy_home(registered_template, tmp_path_factory.mktemp("story") / "home")
    settings = Settings(home=home, **values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stems, "make_classifier", make_fast_classifier)
        result = run_orchestrator(settings)
    message = rollback(settings, None)
    return Story(settings, result, message, pages(settings.home))


@pytest.mark.usefixtures("fast_training")
class TestOutcomes:
    """Every way in which a cycle ends leaves a page that explains it."""

    def test_healthy(self, home: Path, settings_of: SettingsOf) -> None:
        """The error against the threshold; no gate, no challenger."""
        settings = settings_of(home, threshold=1000)
        result = run_orchestrator(settings)
        page = only_page(home, "healthy")
        assert result.message[1:] in page.text
        assert "✓ Healthy Version 1 stays production" in page.text
        assert "This is the first monitored batch" in page.text
        assert "The gate's criteria" not in page.text
        assert "What changed in the data" in page.text
        assert "cycle_report.html" in artifacts(settings, "ModelMonitoring")

    def test_promoted(self, story: Story) -> None:
        """Both models by recording, the criteria, and how to go back; MLflow has it too."""
        page = read(story.pages[0].read_text())
        assert story.pages[0].name.endswith("_promoted.html")
        assert story.result.message[1:].replace("->", "→") in page.text
        assert "Version 2 is production now" in page.text
        assert "pipeline_orchestrator.py rollback goes back to version 1" in page.text
        assert page.text.count("✓ passed") == 5
        assert page.text.count("new_01.csv") >= 3
        assert "could not be made" not in page.text
        pictures = {"true_and_predicted.png", "importance.png"}
        assert pictures <= artifacts(story.settings, "ModelRetraining")
        registry = open_registry(story.settings)
        run = newest_run(registry, "ModelMonitoring")
        stored = registry.runs.artifact(run.info.run_id, "cycle_report.html")
        assert stored == story.pages[0].read_bytes()
        assert run.data.tags["mlflow.note.content"] == story.result.message

    def test_rolled_back(self, story: Story) -> None:
        """Which version is production again; the page is with the run of the change."""
        page = read(story.pages[1].read_text())
        assert story.pages[1].name.endswith("_rolled_back.html")
        assert story.rollback[1:] in page.text
        assert "Version 1 is production again" in page.text
        assert "could not be made" not in page.text
        assert "cycle_report.html" in artifacts(story.settings, "ModelPromotion")

    def test_mlflow_tells_in_plain_words(self, story: Story) -> None:
        """What became of a version and when, what the model is, what data was used for what."""
        registry = open_registry(story.settings)
        client, name = registry.runs.connection.client, story.settings.model_name
        texts = [client.get_model_version(name, number).description for number in ("1", "2")]
        assert re.match(r"first model \S+\.pkl, registered \d{4}-\d\d-\d\d: ", texts[0])
        assert re.match(
            r"promoted \d{4}-\d\d-\d\d: [\d.]+ % -> [\d.]+ % on 6 recordings, p = 0\.0", texts[1]
        )
        assert "retraining pipeline" in client.get_registered_model(name).description
        run = newest_run(registry, "ModelRetraining")
        contexts = [tag.value for one in run.inputs.dataset_inputs for tag in one.tags]
        assert sorted(contexts) == ["evaluation", "training"]

    @pytest.mark.slow
    def test_not_promoted(self, home: Path, settings_of: SettingsOf) -> None:
        """The failed criterion, in a code and in plain words, and what to do."""
        result = run_orchestrator(settings_of(home, min_improvement=90))
        assert result.outcome is Outcome.NOT_PROMOTED
        page = only_page(home, "not_promoted")
        assert "! Not promoted Version 1 stays production" in page.text
        assert result.message[1:] in page.text
        assert "In plain words: the challenger's mean error is not low enough." in page.text
        assert "the files stay in new_gts/" in page.text
        assert "✗ failed" in page.text

    @pytest.mark.sampled(0.34)
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("reason", "values", "spoil"),
        [
            ("NOT_BETTER", {}, {"new_01.csv": 900.0}),
            ("NOT_SIGNIFICANT", {}, {"new_01.csv": 90.0}),
            ("TOO_FEW_RECORDINGS", {"significance": 0.01}, {}),
            ("NO_BETTER_THAN_NO_MODEL", {}, {"new_01.csv": 900.0}),
            ("FORGETS", {}, {f"old_{n:02d}.csv": 60.0 for n in range(1, OLD_SEASON_FILES + 1)}),
            ("TEST_LEAK", {}, {}),
        ],
    )
    def test_kept_for_each_reason(
        self,
        home: Path,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
        reason: str,
        values: dict[str, float],
        spoil: dict[str, float],
    ) -> None:
        """A real cycle whose challenger errs, or whose data is such, that the criterion fails."""
        train = cross_validation.train

        def train_and_spoil(*given: Any, **named: Any) -> Any:
            result, n_known = train(*given, **named)
            for name, error in spoil.items():
                result.out_of_fold.loc[name, ERROR] = error
            return result, n_known

        monkeypatch.setattr(cross_validation, "train", train_and_spoil)
        if reason == "FORGETS":
            known = {files.hash_file(path): 0.0 for path in (home / "used_gts").glob("*.csv")}
            monkeypatch.setattr(Versions, "out_of_fold_errors", lambda *_: known)
        if reason == "TEST_LEAK":
            (home / "used_gts" / "old_01.csv").rename(home / "new_gts" / "smuggled.csv")
            take_in: Any = intake.take_in
            monkeypatch.setattr(
                intake, "take_in", lambda *given: take_in(*given[:-1], intake.Learnt())
            )
        result = run_orchestrator(settings_of(home, **values))
        assert reason in result.facts["verdict"]["reasons"]
        told = only_page(home, "not_promoted")
        assert page.REASONS[reason].format(things="recordings") in told.text
        assert result.message[1:].replace("->", "→") in told.text

    def test_failed(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What failed after monitoring and what to do next; the error itself goes on."""

        def fail(*_: Any, **__: Any) -> None:
            raise ValueError("a fold lacks one of the two labels")

        monkeypatch.setattr(stems, "fit", fail)
        with pytest.raises(PipelineError, match="cannot train: a fold lacks"):
            run_orchestrator(settings_of(home))
        page = only_page(home, "failed")
        assert "✗ Failed The cycle did not come to its end" in page.text
        assert "The cycle failed: cannot train: a fold lacks" in page.text
        assert "the next run goes on" in page.text
        assert "What changed in the data" in page.text

    def test_quiet_nights_share_a_page(self, home: Path, settings_of: SettingsOf) -> None:
        """Waiting, and nothing new since the last verdict: one page, written anew."""
        quiet = home / "reports" / "quiet_night.html"
        result = run_orchestrator(settings_of(home, min_new_files=BATCH + 1))
        page = read(quiet.read_text())
        assert "… Waiting Nothing was judged" in page.text
        assert result.message[1:] in page.text
        settings = settings_of(home, threshold=1000)
        run_orchestrator(settings)
        before = [path.name for path in pages(home)]
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.ALREADY_JUDGED
        page = read(quiet.read_text())
        assert "= Nothing new Version 1 stays production" in page.text
        assert result.message[1:] in page.text
        assert [path.name for path in pages(home)] == before

    def test_a_night_like_the_last_one_makes_no_page_anew(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only its time differs, which is as cheap as it sounds; any other news is told."""
        quiet = home / "reports" / "quiet_night.html"
        settings = settings_of(home, min_new_files=BATCH + 1)
        run_orchestrator(settings)
        first = quiet.read_text()
        (at, shown), then = keep.TIME.findall(first)[0], ("2026-01-02T03:04:05", "2026-01-02 03:04")
        quiet.write_text(first.replace(at, then[0]).replace(shown, then[1]))
        with monkeypatch.context() as patch:
            patch.setattr(page, "make_page", None)
            run_orchestrator(settings)
        again = quiet.read_text()
        (at_again, shown_again) = keep.TIME.findall(again)[0]
        assert at <= at_again
        assert again.replace(at_again, at).replace(shown_again, shown) == first
        (home / "new_gts" / "bad.csv").write_text("nonsense")
        run_orchestrator(settings_of(home, min_new_files=BATCH + 2))
        assert f"of {BATCH + 2} new" in quiet.read_text()

    def test_a_dry_run_writes_no_page(self, home: Path, settings_of: SettingsOf) -> None:
        """It changes nothing."""
        run_orchestrator(settings_of(home), dry_run=True)
        assert not (home / "reports").exists()

    @pytest.mark.slow
    def test_the_error_over_time(self, home: Path, settings_of: SettingsOf) -> None:
        """The second batch: a chart, and one step more of the metric that MLflow draws."""
        settings = settings_of(home, threshold=1000)
        first = run_orchestrator(settings).facts["mean_error"]
        write_recordings(home / "new_gts", 1, "new", seed=9, prefix="late")
        second = run_orchestrator(settings).facts["mean_error"]
        page = read(pages(home)[-1].read_text())
        assert "2 batches were monitored, 0 of them above the threshold" in page.text
        assert "error_over_time.png" in artifacts(settings, "ModelMonitoring")
        registry = open_registry(settings)
        run = newest_run(registry, "ModelMonitoring")
        client = registry.runs.connection.client
        history = client.get_metric_history(run.info.run_id, "mean_error")
        assert [(one.step, one.value) for one in history] == [(1, first), (2, second)]
        assert run.data.metrics["mean_error"] == second
        run_orchestrator(settings, force=True)
        assert "2 batches were monitored" in read(pages(home)[-1].read_text()).text
        errors = [one.mean_error for one in keep.monitored_batches(registry)]
        assert errors == [first, second]

    @pytest.mark.slow
    def test_rejected_files_and_odd_values_are_listed(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Each with what is wrong and what to do; the name of a file is no markup."""
        (home / "new_gts" / "<b>bad.csv").write_text("object_id,frames\n1,2\n")
        odd = home / "new_gts" / "new_01.csv"
        rows = pd.read_csv(odd)
        rows.loc[3:5, "aspect_ratio"] = 2.7e16
        rows.to_csv(odd, index=False)
        run_orchestrator(settings_of(home, threshold=1000))
        page = only_page(home, "healthy")
        assert "<b>bad.csv" in page.text
        assert "lacks the columns" in page.text
        assert "aspect_ratio: 3 of" in page.text
        assert "Rejected files that wait to be mended: 1" in page.text
        assert "b" not in {tag for tag, _ in page.tags}

    @pytest.mark.sampled(0.5)
    @pytest.mark.parametrize("threshold", [1, 1000], ids=["judged", "healthy"])
    @pytest.mark.slow
    def test_examples_may_hold_texts(
        self,
        home: Path,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
        threshold: int,
    ) -> None:
        """A column of texts cost the report of a promotion: could not convert string to float."""
        examples = stems.examples

        def with_text(rows: pd.DataFrame) -> pd.DataFrame:
            table = examples(rows)
            season = "old" if rows["file"].iloc[0].startswith("old") else "new"
            texts = [f"{season} {number % 2}" for number in range(len(table))]
            return table.assign(season=texts, camera="unknown", lost=None)

        monkeypatch.setattr(stems, "examples", with_text)
        run_orchestrator(settings_of(home, threshold=threshold, cache_mb=0))
        (path,) = pages(home)
        text = read(path.read_text()).text
        assert "could not be made" not in text
        assert "The most shifted feature is season (distance 1.00)." in text
        assert "Shares of the most frequent values" in text

    @pytest.mark.slow
    def test_a_module_whose_examples_are_rows(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the model may look at is compared; the truth is not."""
        monkeypatch.delattr(stems, "examples")
        run_orchestrator(settings_of(home, threshold=1000, cache_mb=0))
        text = only_page(home, "healthy").text
        assert "Histogram of" in (pages(home)[0]).read_text()
        assert "could not be made" not in text
        assert "ground_truth" not in text.split("What changed in the data")[-1].split("Lineage")[0]


@pytest.mark.usefixtures("fast_training")
class TestNothingNeedsIt:
    """A page that cannot be made changes nothing but the log."""

    def test_a_failing_page_stops_no_promotion(
        self,
        home: Path,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """One line says why there is none; production and files are as they should be."""

        def fail(*_: Any) -> None:
            raise ZeroDivisionError("a bug in\na chart")

        monkeypatch.setattr(page, "make_page", fail)
        settings = settings_of(home)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        (line,) = warnings_of(caplog)
        assert r"ZeroDivisionError: a bug in\na chart (test_keep.py:" in line
        assert_promoted(settings)

    @pytest.mark.slow
    def test_a_failing_chart_costs_its_section(
        self,
        home: Path,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """One line in the log, one sentence on the page; MLflow has it with its other charts."""

        def fail(*_: Any) -> None:
            raise ZeroDivisionError("a bug in\na chart")

        monkeypatch.setattr(charts, "true_and_predicted", fail)
        settings = settings_of(home)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        (line,) = warnings_of(caplog)
        assert "the report lacks 'This batch, recording by recording'" in line
        assert r"ZeroDivisionError: a bug in\na chart (test_keep.py:" in line
        text = only_page(home, "promoted").text
        assert text.count("could not be made") == 1
        assert "importance.png" in artifacts(settings, "ModelRetraining")
        assert "cycle_report.html" in artifacts(settings, "ModelMonitoring")
        assert_promoted(settings)

    def test_a_folder_that_cannot_be_written(
        self, home: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Something else stands where reports/ should be: the verdict stays, and MLflow's page."""
        (home / "reports").write_text("in the way")
        settings = settings_of(home, threshold=1000)
        assert run_orchestrator(settings).outcome is Outcome.HEALTHY
        assert "the page of this cycle is missing" in caplog.text
        assert "cycle_report.html" in artifacts(settings, "ModelMonitoring")

    def test_a_failing_page_does_not_hide_the_failure(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error of the cycle is the one that an operator sees."""

        def fail(*_: Any, **__: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(Judgements, "record", fail)
        monkeypatch.setattr(page, "make_page", lambda *_: 1 / 0)
        with pytest.raises(OSError, match="no space left"):
            run_orchestrator(settings_of(home))

    @pytest.mark.slow
    def test_a_failure_after_the_verdict_adds_no_page(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The page of the promotion stands: one of a failure would contradict it."""

        def fail(*_: Any, **__: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(recovery, "archive", fail)
        with pytest.raises(OSError, match="no space left"):
            run_orchestrator(settings_of(home))
        only_page(home, "promoted")

    def test_the_last_thirty_are_kept(self, home: Path, settings_of: SettingsOf) -> None:
        """The oldest page goes; files that are no pages of ours stay; pieces are tidied."""
        folder = home / "reports"
        folder.mkdir()
        for day in range(1, 31):
            (folder / f"2025-01-{day:02d}T02-00-00_healthy.html").write_text("old")
        (folder / "notes.html").write_text("mine")
        piece = folder / ".pipeline-abc.tmp"
        piece.write_text("half a page")
        run_orchestrator(settings_of(home, threshold=1000))
        names = [path.name for path in pages(home)]
        # The run itself tidies the piece.
        assert len([name for name in names if name != piece.name]) == 31
        assert "2025-01-01T02-00-00_healthy.html" not in names
        assert "2025-01-02T02-00-00_healthy.html" in names
        assert "notes.html" in names
        files.remove_left_overs(folder)
        assert not piece.exists()

    def test_below_the_trigger_nothing_is_drawn(self) -> None:
        """A night without news imports no matplotlib, and no scipy; no template either."""
        code = (
            "import sys, pipeline_orchestrator\n"
            "heavy = {'matplotlib', 'scipy', 'numpy', 'jinja2'}\n"
            "sys.exit(str(heavy & set(sys.modules) or '') or None)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def assert_promoted(settings: Any) -> None:
    """Production, the tags that later nights ask for and the files are as they should be."""
    registry = open_registry(settings)
    assert registry.production.number() == 2
    run = newest_run(registry, "ModelMonitoring")
    assert run.data.tags["pipeline_outcome"] == "promoted"
    assert len(list((settings.home / "used_gts").glob("*.csv"))) == OLD_SEASON_FILES + BATCH
