"""The page of a cycle: what it says, that it can be read by anybody, and that nothing needs it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import (
    BATCH,
    FAST,
    OLD_SEASON_FILES,
    ROOT,
    copy_home,
    make_fast_classifier,
)
from sample_gts import write_recordings

import champion_gate
import cycle_report
import gts_folder
import model_registry
import pipeline_recovery
import train_classification_model as training
from cycle_records import Outcome
from cycle_report import CycleFacts, FeatureImportance, MonitoredBatch, RecordingResult
from model_registry import ModelRegistry, TrainingFile
from pipeline_orchestrator import run_orchestrator
from pipeline_settings import PipelineError, Settings

SettingsOf = Callable[..., Any]

VOID = {"meta", "br"}
HOSTILE = "<script>alert('x')</script>\n\"&\udcff\u202e$x_1$\x00.csv"


class Reader(HTMLParser):
    """Reads a page as a browser would and complains about what a person could not use."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> in {self.open}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """Everything that can be read."""
        return " ".join("".join(self.words).split())


def read(page: str) -> Reader:
    """Read a page and check what holds for every page."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert len(page.encode()) < 1_000_000
    assert "http" not in page.lower().replace("http-equiv", "")
    names = [tag for tag, _ in reader.tags]
    assert not {"script", "link", "img", "iframe", "object"} & set(names)
    assert not [key for _, values in reader.tags for key in values if key.startswith("on")]
    assert len(set(reader.ids)) == len(reader.ids)
    referred = re.findall(r'(?:href="|url\()#([^")]+)', page)
    assert set(referred) <= set(reader.ids)
    assert reader.headings[0] == 1
    assert reader.headings.count(1) == 1
    steps = zip(reader.headings, reader.headings[1:], strict=False)
    assert all(after - before <= 1 for before, after in steps)
    assert all(values["aria-label"] for tag, values in reader.tags if tag == "svg")
    assert all(values["scope"] in ("row", "col") for tag, values in reader.tags if tag == "th")
    assert names.count("caption") == names.count("table")
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page
    return reader


def pages(home: Path) -> list[Path]:
    """Return the pages of a home, the oldest first."""
    return sorted((home / "reports").iterdir(), key=lambda path: path.stem)


def only_page(home: Path, outcome: str) -> Reader:
    """Read the one page of a home and check the outcome in its name."""
    (path,) = pages(home)
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d-\d\d-\d\d_{outcome}\.html", path.name)
    return read(path.read_text())


def artifacts(settings: Any, name: str) -> set[str]:
    """Return the files of the newest run of a name."""
    registry = model_registry.open_registry(settings)
    (run, *_) = registry.runs(name)
    return {one.path for one in registry._client.list_artifacts(run.info.run_id)}


def make_facts(**values: Any) -> CycleFacts:
    """Return the facts of a small cycle that was judged, without any model."""
    champion, challenger = [30.0, 20.0, 10.0, 5.0, 40.0, 0.0], [5.0, 0.0, 10.0, 10.0, 0.0, 0.0]
    random = np.random.default_rng(0)
    table = pd.DataFrame({"speed": random.normal(size=300), "area": random.normal(size=300)})
    facts = CycleFacts(
        model_name="Stems",
        at="2026-11-23T02:00:07+01:00",
        outcome="promoted",
        message="promoted: version 2 replaces version 1: 17.5 % -> 4.2 %",
        production="2",
        threshold=10,
        champion="1",
        challenger="2",
        history=tuple(
            MonitoredBatch(f"2026-11-{day}T02:00:00", "1", 6, day, day - 5, day + 5, "healthy")
            for day in (21, 22, 23)
        ),
        recordings=tuple(
            RecordingResult(f"{i}.csv", 20, 20 + i, before, 20, after)
            for i, (before, after) in enumerate(zip(champion, challenger, strict=True))
        ),
        verdict=champion_gate.judge(champion, challenger),
        shifts=cycle_report.feature_shifts(table, table.assign(area=table["area"] + 2)),
        importances=(FeatureImportance("speed", 3.2, 0.4), FeatureImportance("area", -0.1, 0.2)),
        files={"New recordings": (TrainingFile("0.csv", "ab" * 32, 100),)},
        lineage={"Packages": {"python": "3.11"}},
    )
    return replace(facts, **values)


def make_page(facts: CycleFacts) -> str:
    """Return the page of these facts."""
    return cycle_report.page(facts, cycle_report.draw(facts))


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
        patch.setattr(training, "make_classifier", make_fast_classifier)
        result = run_orchestrator(settings)
    message = pipeline_recovery.rollback(settings, None)
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
        pictures = {"true_and_predicted.png", "importance.png"}
        assert pictures <= artifacts(story.settings, "ModelRetraining")
        registry = model_registry.open_registry(story.settings)
        (run,) = registry.runs("ModelMonitoring")
        stored = registry._run_artifact(run.info.run_id, "cycle_report.html")
        assert stored == story.pages[0].read_bytes()
        assert run.data.tags["mlflow.note.content"] == story.result.message

    def test_rolled_back(self, story: Story) -> None:
        """Which version is production again; the page is with the run of the change."""
        page = read(story.pages[1].read_text())
        assert story.pages[1].name.endswith("_rolled_back.html")
        assert story.rollback[1:] in page.text
        assert "Version 1 is production again" in page.text
        assert "cycle_report.html" in artifacts(story.settings, "ModelPromotion")

    def test_mlflow_tells_in_plain_words(self, story: Story) -> None:
        """What became of a version and when, what the model is, what data was used for what."""
        registry = model_registry.open_registry(story.settings)
        client, name = registry._client, story.settings.model_name
        texts = [client.get_model_version(name, number).description for number in ("1", "2")]
        assert re.match(r"first model \S+\.pkl, registered \d{4}-\d\d-\d\d: ", texts[0])
        assert re.match(
            r"promoted \d{4}-\d\d-\d\d: [\d.]+ % -> [\d.]+ % on 6 recordings, p = 0\.0", texts[1]
        )
        assert "retraining pipeline" in client.get_registered_model(name).description
        (run,) = registry.runs("ModelRetraining")
        contexts = [tag.value for one in run.inputs.dataset_inputs for tag in one.tags]
        assert sorted(contexts) == ["evaluation", "training"]

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
        train = training.train_classification_model

        def train_and_spoil(*given: Any, **named: Any) -> Any:
            result = train(*given, **named)
            for name, error in spoil.items():
                result.out_of_fold.loc[name, "error_percent"] = error
            return result

        monkeypatch.setattr(training, "train_classification_model", train_and_spoil)
        if reason == "FORGETS":
            known = {gts_folder.hash_file(path): 0.0 for path in (home / "used_gts").glob("*.csv")}
            monkeypatch.setattr(ModelRegistry, "out_of_fold_errors", lambda *_: known)
        if reason == "TEST_LEAK":
            (home / "used_gts" / "old_01.csv").rename(home / "new_gts" / "smuggled.csv")
            take_in = gts_folder.take_in
            monkeypatch.setattr(
                gts_folder, "take_in", lambda *known: take_in(known[0], known[1], {})
            )
        result = run_orchestrator(settings_of(home, **values))
        assert reason in result.facts["verdict"]["reasons"]
        page = only_page(home, "not_promoted")
        assert cycle_report.REASONS[reason] in page.text
        assert result.message[1:].replace("->", "→") in page.text

    def test_failed(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What failed after monitoring and what to do next; the error itself goes on."""

        def fail(*_: Any, **__: Any) -> None:
            raise training.TrainingError("a fold lacks one of the two labels")

        monkeypatch.setattr(training, "train_classification_model", fail)
        with pytest.raises(PipelineError, match="cannot retrain: a fold lacks"):
            run_orchestrator(settings_of(home))
        page = only_page(home, "failed")
        assert "✗ Failed The cycle did not come to its end" in page.text
        assert "The cycle failed: cannot retrain: a fold lacks" in page.text
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

    def test_a_dry_run_writes_no_page(self, home: Path, settings_of: SettingsOf) -> None:
        """It changes nothing."""
        run_orchestrator(settings_of(home), dry_run=True)
        assert not (home / "reports").exists()

    def test_the_error_over_time(self, home: Path, settings_of: SettingsOf) -> None:
        """The second batch: a chart, and one step more of the metric that MLflow draws."""
        settings = settings_of(home, threshold=1000)
        first = run_orchestrator(settings).facts["mean_error"]
        write_recordings(home / "new_gts", 1, "new", seed=9, prefix="late")
        second = run_orchestrator(settings).facts["mean_error"]
        page = read(pages(home)[-1].read_text())
        assert "2 batches were monitored, 0 of them above the threshold" in page.text
        assert "error_over_time.png" in artifacts(settings, "ModelMonitoring")
        registry = model_registry.open_registry(settings)
        run = registry.runs("ModelMonitoring")[0]
        history = registry._client.get_metric_history(run.info.run_id, "mean_error")
        assert [(one.step, one.value) for one in history] == [(1, first), (2, second)]
        assert run.data.metrics["mean_error"] == second
        run_orchestrator(settings, force=True)
        assert "2 batches were monitored" in read(pages(home)[-1].read_text()).text

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

        monkeypatch.setattr(cycle_report, "draw", fail)
        settings = settings_of(home)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        (line,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert r"ZeroDivisionError: a bug in\na chart (test_cycle_report.py:" in line
        registry = model_registry.open_registry(settings)
        assert registry.production_number() == 2
        (run,) = registry.runs("ModelMonitoring")
        assert run.data.tags["pipeline_outcome"] == "promoted"
        assert len(list((home / "used_gts").glob("*.csv"))) == OLD_SEASON_FILES + BATCH

    def test_a_folder_that_cannot_be_written(
        self, home: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Something else stands where reports/ should be: the verdict stays."""
        (home / "reports").write_text("in the way")
        assert run_orchestrator(settings_of(home, threshold=1000)).outcome is Outcome.HEALTHY
        assert "the page of this cycle is missing" in caplog.text

    def test_a_failing_page_does_not_hide_the_failure(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error of the cycle is the one that an operator sees."""

        def fail(*_: Any, **__: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(ModelRegistry, "record_verdict", fail)
        monkeypatch.setattr(cycle_report, "page", lambda *_: 1 / 0)
        with pytest.raises(OSError, match="no space left"):
            run_orchestrator(settings_of(home))

    def test_a_failure_after_the_verdict_adds_no_page(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The page of the promotion stands: one of a failure would contradict it."""

        def fail(*_: Any, **__: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(pipeline_recovery, "archive", fail)
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
        assert len(names) == 32
        assert "2025-01-01T02-00-00_healthy.html" not in names
        assert "2025-01-02T02-00-00_healthy.html" in names
        assert "notes.html" in names
        gts_folder.remove_left_overs(folder)
        assert not piece.exists()

    def test_below_the_trigger_nothing_is_drawn(self) -> None:
        """A night without news imports no matplotlib, and no scipy."""
        code = (
            "import sys, pipeline_orchestrator\n"
            "sys.exit(str({'matplotlib', 'scipy', 'numpy'} & set(sys.modules) or '') or None)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


class TestPage:
    """Facts in, HTML out."""

    def test_it_is_the_same_for_the_same_facts(self) -> None:
        """No time, no random id."""
        assert make_page(make_facts()) == make_page(make_facts())

    def test_hostile_names_are_text(self) -> None:
        """Markup, line breaks, stray bytes, formulas and reversed writing are shown as they are."""
        facts = make_facts(
            model_name=HOSTILE,
            message=HOSTILE,
            recordings=[replace(one, name=HOSTILE) for one in make_facts().recordings],
            data_quality={HOSTILE: HOSTILE},
            rejected=[gts_folder.Refusal(HOSTILE, HOSTILE, HOSTILE)],
            files={"New": (TrainingFile(HOSTILE, "ab" * 32, 1),)},
        )
        page = make_page(facts)
        reader = read(page)
        assert r"<script>alert('x')</script>\n" in reader.text
        assert r"\udcff\u202e$x_1$\x00.csv" in reader.text
        page.encode()

    def test_a_large_cycle_stays_small(self) -> None:
        """A thousand recordings and batches: tables are cut and say so."""
        names = [f"a_rather_long_name_of_a_recording_{i}.csv" for i in range(1000)]
        errors = [i / 10 for i in range(1000)]
        facts = make_facts(
            history=[make_facts().history[0]] * 500,
            recordings=[
                RecordingResult(name, 50, 50 + i % 9, errors[i], 50, 0.0)
                for i, name in enumerate(names)
            ],
            verdict=champion_gate.judge(errors, [0.0] * 1000),
            data_quality=dict.fromkeys(names, "scores: 1 of 9 values missing or impossible"),
            files={"New": [TrainingFile(name, "ab" * 32, 1) for name in names]},
        )
        assert "700 more are left out here" in read(make_page(facts)).text

    def test_one_recording_needs_no_chart(self) -> None:
        """Numbers say it; without a verdict there is no gate."""
        facts = make_facts(
            history=make_facts().history[:1],
            recordings=make_facts().recordings[:1],
            verdict=None,
            shifts=(),
            importances=(),
        )
        assert cycle_report.draw(facts) == {}
        assert "svg" not in {tag for tag, _ in read(make_page(facts)).tags}

    def test_every_reason_has_plain_words(self) -> None:
        """All that the gate can say no with."""
        source = Path(champion_gate.__file__).read_text()
        assert set(re.findall(r'^        "([A-Z_]{6,})",$', source, re.M)) == set(
            cycle_report.REASONS
        )
        verdict = champion_gate.judge([5.0, 6.0], [5.0, 7.0], n_leaked=1, no_model_errors=[1, 1])
        text = read(make_page(make_facts(outcome="not_promoted", verdict=verdict))).text
        assert (
            "In plain words: production was trained on some of the new recordings; the "
            "challenger's mean error is not low enough; the models differ on too few recordings; "
            "the gain may be chance; the challenger is no better than no model at all." in text
        )

    def test_an_unknown_outcome_has_a_page(self) -> None:
        """Its word stands for itself."""
        assert "On probation" in read(make_page(make_facts(outcome="on_probation"))).text

    def test_changes_of_production_are_marked(self) -> None:
        """Between the batches, and after the last one."""
        history = [
            replace(one, version=version)
            for one, version in zip(make_facts().history, "133", strict=True)
        ]
        page = make_page(make_facts(history=history, production="4"))
        assert "to version 3 after batch 1; to version 4 after batch 3" in page
        assert ">to version 3</text>" in page

    def test_ties_are_neither_better_nor_worse(self) -> None:
        """Worked out by hand from the six pairs: 3 better, 1 worse, 2 alike."""
        text = read(make_page(make_facts())).text
        assert "closer to the truth on 3 recordings and farther from it on 1; 2 are alike" in text


class TestShiftsAndImportance:
    """The numbers behind the page."""

    def test_a_shifted_feature_comes_first(self) -> None:
        """Two deviations to the right: a distance of 2 Phi(1) - 1 = 0.68 in expectation."""
        random = np.random.default_rng(1)
        old = pd.DataFrame(random.normal(size=(2000, 3)), columns=["a", "b", "c"])
        new = pd.DataFrame(random.normal(size=(2000, 3)), columns=["a", "b", "c"])
        new["b"] += 2
        first, *others = cycle_report.feature_shifts(old, new)
        assert first.feature == "b"
        assert first.statistic == pytest.approx(0.683, abs=0.04)
        assert first.p_value < 1e-50
        assert max(one.statistic for one in others) < 0.1

    def test_unknown_values_are_left_out(self) -> None:
        """A feature that is known on one side only has no row; a constant one has no distance."""
        old = pd.DataFrame({"a": [1.0, 1.0, np.nan], "b": [np.nan] * 3})
        new = pd.DataFrame({"a": [1.0, 1.0], "b": [1.0, 2.0]})
        (only,) = cycle_report.feature_shifts(old, new)
        assert (only.feature, only.statistic, len(only.trained_on)) == ("a", 0.0, 2)
        read(make_page(make_facts(shifts=(only,))))

    @pytest.mark.usefixtures("fast_training")
    def test_importance_is_deterministic_and_held_out(self, home: Path) -> None:
        """The same twice; a feature matters, and each track is named after its recording."""
        results = [
            training.train_classification_model(home / "used_gts", n_folds=3, n_jobs=1)
            for _ in range(2)
        ]
        first, second = (one.importance for one in results)
        pd.testing.assert_frame_equal(first, second)
        assert list(first.index) == list(training.TRACK_FEATURES)
        assert first["mean"].max() > 0
        assert (first["deviation"] >= 0).all()
        assert set(results[0].features.index) == set(results[0].out_of_fold.index)
