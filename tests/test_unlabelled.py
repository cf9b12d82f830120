"""Each night: what production probably does on recordings that nobody has checked."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import BATCH, DOMAINS, ROOT, Domain, both_modules_in_time, script

import pipeline_orchestrator
import register_first_model
import train_classification_model as stems
from pipeline_orchestrator import load_champion, main, run_orchestrator
from retraining import unlabelled
from retraining.advice import with_given_flags
from retraining.calibration import Estimate
from retraining.cycle import CycleResult
from retraining.estimates import Estimated, trend
from retraining.ground_truth import hashes_in
from retraining.journal import Journal
from retraining.marks import Triaged
from retraining.outcome import Outcome
from retraining.registry import open_registry
from retraining.settings import Settings
from retraining.training import Training, load_training_module
from retraining.unlabelled import INDEX_NAME, Index, is_alarming

pytestmark = pytest.mark.usefixtures("fast_training")
TRUTH = {"train_classification_model": "ground_truth", "grain_quality": "quality"}


def train_first(settings: Settings) -> None:
    """Let production be a model of the old season, with errors out of fold."""
    register_first_model.register_first_model(settings, force=True, train=True)


@pytest.fixture
def calibrated(
    domain: Domain,
    history_of: Callable[..., tuple[Path, Any]],
    settings_of: Callable[..., Settings],
    tmp_path: Path,
) -> Settings:
    """Give a home whose production has a calibration, with nothing new in new_gts/."""

    def happen(home: Path) -> None:
        shutil.rmtree(home / "new_gts")
        (home / "new_gts").mkdir()
        domain.write(home / "used_gts", 6, "old", seed=11, prefix="more")
        train_first(settings_of(home))

    home, _ = history_of(domain, "calibrated", happen, tmp_path / "home")
    (home / "unlabelled").mkdir()
    return settings_of(home)


def drop(
    settings: Settings, domain: Domain, count: int, season: str, seed: int, **more: Any
) -> list[Path]:
    """Put recordings without the truth into unlabelled/."""
    paths = domain.write(settings.unlabelled_folder, count, season, seed=seed, **more)
    for path in paths:
        pd.read_csv(path).drop(columns=TRUTH[domain.module_name]).to_csv(path, index=False)
    return paths


def never() -> Any:
    """Stand for production where nothing may be asked of it."""
    raise AssertionError("production was loaded")


def last(settings: Settings) -> Any:
    """Return what was estimated last."""
    found = unlabelled.last_estimate(settings)
    assert found is not None
    return found


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the names of the files that are read."""
    names: list[str] = []
    original = Training.parse_unlabelled

    def parse(self: Training, content: bytes, name: str) -> pd.DataFrame:
        names.append(name)
        return original(self, content, name)

    monkeypatch.setattr(Training, "parse_unlabelled", parse)
    return names


class TestNight:
    """Cheap, and only for what is new."""

    @both_modules_in_time
    def test_a_file_is_read_once_for_each_production(
        self, calibrated: Settings, domain: Domain, parsed: list[str]
    ) -> None:
        """A night with nothing new asks nobody; three new ones are three."""
        drop(calibrated, domain, 20, "old", seed=5)
        result = run_orchestrator(calibrated)
        assert result.outcome is Outcome.WAITING
        assert result.estimate is not None
        assert (result.estimate.n_files, result.estimate.n_new) == (20, 20)
        assert result.estimate.mean_error is not None
        assert len(parsed) == 20
        unlabelled.estimate(calibrated, never)
        drop(calibrated, domain, 3, "old", seed=6, prefix="later")
        again = run_orchestrator(calibrated).estimate
        assert again is not None
        assert (again.n_files, again.n_new) == (23, 3)
        assert len(parsed) == 23
        version = open_registry(calibrated).production.champion()
        memory = Journal(calibrated.home).read()
        kept = trend(memory, calibrated.model_name, version.number, version.run_id)
        assert kept == [result.estimate, again]

    def test_another_production_is_asked_anew(
        self, calibrated: Settings, domain: Domain, parsed: list[str]
    ) -> None:
        """Its errors are others; the trend of the one before is none of it."""
        drop(calibrated, domain, 6, "old", seed=5)
        before = run_orchestrator(calibrated).estimate
        train_first(calibrated)
        after = run_orchestrator(calibrated).estimate
        assert before is not None
        assert after is not None
        assert after.version == before.version + 1
        assert len(parsed) == 12

    @pytest.mark.slow
    def test_three_new_ones_among_500_cost_what_three_cost(
        self,
        calibrated: Settings,
        domain: Domain,
        parsed: list[str],
        figure: Callable[[str, Any], None],
    ) -> None:
        """Only they are read; the others are looked at by name, size and time."""
        seconds = {}
        for n_before in (0, 497):
            if n_before:
                drop(calibrated, domain, n_before, "old", seed=5)
                run_orchestrator(calibrated)
            del parsed[:]
            drop(calibrated, domain, 3, "old", seed=6 + n_before, prefix=f"new_{n_before}")
            began = time.perf_counter()
            run_orchestrator(calibrated)
            seconds[n_before] = time.perf_counter() - began
            assert len(parsed) == 3
        assert last(calibrated).n_files == 503
        ratio = seconds[497] / seconds[0]
        figure("night with 3 new of 503 unlabelled files, against 3 of 3", f"{ratio:.2f}")

    def test_the_newest_days_count(self, calibrated: Settings, domain: Domain) -> None:
        """At least so many as decide; healthy ones of before hide no change of season."""
        for path in drop(calibrated, domain, 12, "old", seed=5, prefix="before"):
            os.utime(path, (1e9, 1e9))
        drop(calibrated, domain, BATCH, "new", seed=7, prefix="after")
        run_orchestrator(calibrated)
        found = last(calibrated)
        assert (found.n_files, found.n_recordings) == (12 + BATCH, BATCH)

    def test_many_at_once_come_night_by_night(
        self, calibrated: Settings, domain: Domain, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The newest first, so that the window is estimated at once."""
        monkeypatch.setattr(unlabelled, "MOST_A_NIGHT", 4)
        for number, path in enumerate(drop(calibrated, domain, 6, "old", seed=5)):
            os.utime(path, (1e9 + number, 1e9 + number))
        run_orchestrator(calibrated)
        index = Index.of(calibrated.home)
        assert index is not None
        assert sorted(index.files) == [f"recording_0{number}.csv" for number in (3, 4, 5, 6)]
        run_orchestrator(calibrated)
        assert last(calibrated).n_files == 6

    def test_a_damaged_index_is_begun_anew(self, calibrated: Settings, domain: Domain) -> None:
        """Losing it costs one reading."""
        drop(calibrated, domain, 3, "old", seed=5)
        run_orchestrator(calibrated)
        path = calibrated.home / INDEX_NAME
        for content in (path.read_bytes()[:-3], b"", b"nonsense"):
            path.write_bytes(content)
            run_orchestrator(calibrated)
            assert last(calibrated).n_new == 3

    def test_a_death_between_journal_and_index_costs_one_reading(
        self, calibrated: Settings, domain: Domain, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The next night estimates again; nothing else is lost."""
        drop(calibrated, domain, 3, "old", seed=5)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Index, "save", full)
            assert run_orchestrator(calibrated).estimate is None
        run_orchestrator(calibrated)
        assert last(calibrated).n_new == 3
        told = [one.n_new for one in Journal(calibrated.home).read().all(Estimated)]
        assert told == [3, 3]

    def test_a_dry_run_changes_nothing(self, calibrated: Settings, domain: Domain) -> None:
        """Neither journal nor index."""
        drop(calibrated, domain, 3, "old", seed=5)
        before = Journal(calibrated.home).path.read_bytes()
        assert run_orchestrator(calibrated, dry_run=True).estimate is None
        assert Journal(calibrated.home).path.read_bytes() == before
        assert not (calibrated.home / INDEX_NAME).exists()

    def test_without_the_folder_nothing_happens(self, calibrated: Settings) -> None:
        """As in every home of before."""
        calibrated.unlabelled_folder.rmdir()
        assert run_orchestrator(calibrated).estimate is None
        assert not (calibrated.home / INDEX_NAME).exists()


class TestFiles:
    """What lies in the folder is from outside."""

    def test_what_production_learnt_is_left_out(self, calibrated: Settings, domain: Domain) -> None:
        """Of that it is too sure: the same file, and its rows in another order, without labels."""
        first, second, *_ = sorted(calibrated.used_gts.glob("*.csv"))
        shutil.copy(first, calibrated.unlabelled_folder / "same.csv")
        table = pd.read_csv(second).drop(columns="ground_truth").sample(frac=1, random_state=0)
        table.to_csv(calibrated.unlabelled_folder / "shuffled.csv", index=False)
        drop(calibrated, domain, 2, "old", seed=5)
        run_orchestrator(calibrated)
        assert last(calibrated).n_files == 2

    def test_copies_count_once(self, calibrated: Settings, domain: Domain) -> None:
        """By their content."""
        (path,) = drop(calibrated, domain, 1, "old", seed=5)
        for number in range(4):
            shutil.copy(path, path.with_name(f"copy_{number}.csv"))
        run_orchestrator(calibrated)
        assert last(calibrated).n_files == 1

    def test_a_recording_that_was_saved_again_counts_once(
        self, calibrated: Settings, domain: Domain
    ) -> None:
        """Five copies of an odd one are no five recordings."""
        (path,) = drop(calibrated, domain, 1, "old", seed=5)
        for number in range(4):
            lines = path.read_text().splitlines()
            path.with_name(f"copy_{number}.csv").write_text(("\r\n" + "\n" * number).join(lines))
        run_orchestrator(calibrated)
        assert (last(calibrated).n_files, last(calibrated).n_recordings) == (1, 1)

    def test_what_to_do_with_a_large_file_helps(
        self,
        calibrated: Settings,
        domain: Domain,
        settings_of: Callable[..., Settings],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is read again under another limit."""
        drop(calibrated, domain, 2, "old", seed=5)
        run_orchestrator(settings_of(calibrated.home, max_rows=3))
        assert sum("split it or raise --max-rows" in one for one in caplog.messages) == 2
        run_orchestrator(calibrated)
        assert last(calibrated).n_new == 2

    def test_bad_files_are_told_once(
        self,
        calibrated: Settings,
        domain: Domain,
        parsed: list[str],
        caplog: pytest.LogCaptureFixture,
        ten_seconds: None,
    ) -> None:
        """Links, pipes, folders and nonsense among them; none of them is opened twice."""
        folder = calibrated.unlabelled_folder
        (good,) = drop(calibrated, domain, 1, "old", seed=5)
        (folder / "nonsense.csv").write_bytes(b"\x00\xff")
        (folder / "evil\n\x1b[31m.csv").write_text("a,b\n1,2\n")
        (folder / "folder.csv").mkdir()
        (folder / "link.csv").symlink_to(good)
        os.mkfifo(folder / "pipe.csv")
        run_orchestrator(calibrated)
        told = [one for one in caplog.messages if one.startswith("not estimated: unlabelled/")]
        assert len(told) == 5
        assert all(one.isprintable() for one in told)
        assert last(calibrated).n_files == 1
        n_read = len(parsed)
        run_orchestrator(calibrated)
        assert len(parsed) == n_read

    def test_files_that_left_do_not_count(self, calibrated: Settings, domain: Domain) -> None:
        """Whoever has checked them puts them into new_gts/."""
        paths = drop(calibrated, domain, 4, "old", seed=5)
        run_orchestrator(calibrated)
        for path in paths[1:]:
            path.unlink()
        run_orchestrator(calibrated)
        assert (last(calibrated).n_files, last(calibrated).n_new) == (1, 0)
        paths[0].unlink()
        assert run_orchestrator(calibrated).estimate is None

    def test_a_folder_that_cannot_be_looked_at_costs_no_night(
        self, calibrated: Settings, settings_of: Callable[..., Settings]
    ) -> None:
        """As one on a disk that failed."""
        settings = settings_of(calibrated.home, unlabelled="a" * 300)
        assert run_orchestrator(settings).outcome is Outcome.WAITING
        assert unlabelled.count(settings) == 0


class TestAlarm:
    """Where production is probably degraded somebody is told, and nothing else happens."""

    def test_it_begins_with_the_lower_end_and_ends_with_the_mean(self) -> None:
        """An alarm that comes and goes is not heard; one odd recording is none."""
        for n, mean, low, was, found in (
            (15, 14.0, 10.5, False, True),
            (15, 14.0, 9.5, False, False),
            (15, 10.5, 6.0, True, True),
            (15, 10.0, 6.0, True, False),
            (4, 60.0, 30.0, False, False),
        ):
            estimate = Estimate(mean, low, 99.0, n)
            assert is_alarming(estimate, 10.0, was_alarming=was) is found

    def test_a_change_of_season_calls_for_attention_once(
        self,
        calibrated: Settings,
        domain: Domain,
        settings_of: Callable[..., Settings],
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """With five files to check first; it neither retrains nor promotes."""
        told = tmp_path / "told"
        hook = f"sh -c 'cat >> {told}; echo >> {told}'"
        settings = settings_of(calibrated.home, on_attention=hook, threshold=0.1)
        registry = open_registry(settings)
        runs, before = len(registry.runs.monitored()), registry.production.number()
        drop(settings, domain, 15, "new", seed=7)
        result = run_orchestrator(settings)
        assert result.estimate is not None
        assert result.estimate.mean_error_low is not None
        assert result.estimate.mean_error_low > 0.1
        assert "is probably degraded: estimated before labels: " in result.alarm
        assert result.alarm.count(".csv") == 5
        run_orchestrator(settings)
        drop(settings, domain, 1, "new", seed=8, prefix="more")
        assert run_orchestrator(settings).alarm == result.alarm
        (listed,) = Journal(settings.home).read().all(Triaged)
        assert (listed.pool, len(listed.chosen), listed.random) == (15, 5, [])
        assert "" not in listed.identities
        for sha256, name in hashes_in(settings.unlabelled_folder).items():
            assert (sha256 in listed.chosen) is (name in result.alarm)
        (line,) = told.read_text().splitlines()
        assert json.loads(line)["items"] == [with_given_flags(result.alarm)]
        assert (len(registry.runs.monitored()), registry.production.number()) == (runs, before)
        assert main(["status", "--home", str(settings.home), "--threshold", "0.1"]) == 1
        assert "is probably degraded" in capfd.readouterr().out

    @pytest.mark.parametrize("outcome", [Outcome.PROMOTED, Outcome.HEALTHY])
    def test_nobody_is_alarmed_by_a_version_that_was_just_replaced(
        self,
        calibrated: Settings,
        domain: Domain,
        settings_of: Callable[..., Settings],
        monkeypatch: pytest.MonkeyPatch,
        outcome: Outcome,
    ) -> None:
        """The next run estimates its successor."""
        settings = settings_of(calibrated.home, threshold=0.1, min_new_files=1)
        drop(settings, domain, 8, "new", seed=7)
        domain.write(settings.new_gts, 1, "new", seed=9)
        found = CycleResult(outcome, "version 2 replaces version 1", {})
        monkeypatch.setattr(pipeline_orchestrator, "_cycle", lambda *_, **__: found)
        result = run_orchestrator(settings)
        assert bool(result.alarm) is (outcome is Outcome.HEALTHY)
        assert (result.estimate is None) is (outcome is Outcome.PROMOTED)

    def test_what_is_unlike_anything_learnt_is_said(self) -> None:
        """A model may be sure of what it never saw."""
        one = Estimated(
            "Stems", 1, "run", "then", 20, 2, 15, 18.0, 9.0, 27.0, "%", 10.0, n_unlike=7
        )
        assert one.in_words.endswith(", 7 of the recordings unlike anything learnt")
        assert "unlike" not in dataclasses.replace(one, n_unlike=0).in_words

    def test_another_season_is_estimated_worse(self, calibrated: Settings, domain: Domain) -> None:
        """Than the one that was learnt."""
        drop(calibrated, domain, 8, "old", seed=5)
        run_orchestrator(calibrated)
        healthy = last(calibrated).mean_error
        shutil.rmtree(calibrated.unlabelled_folder)
        calibrated.unlabelled_folder.mkdir()
        drop(calibrated, domain, 8, "new", seed=5)
        run_orchestrator(calibrated)
        assert last(calibrated).mean_error > 2 * healthy


class TestPredict:
    """Single files, by the same estimates."""

    def test_a_count_comes_with_its_interval(
        self, calibrated: Settings, domain: Domain, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """In the line for a person; all of it, and what is bad, in one JSON document."""
        (good,) = drop(calibrated, domain, 1, "old", seed=5)
        bad = good.with_name("bad.csv")
        bad.write_text("a,b\n1,2\n")
        words = ["--home", str(calibrated.home), str(good), str(bad)]
        assert main(["predict", *words]) == 1
        said, refused = capsys.readouterr().err.splitlines()
        assert main(["predict", "--json", *words]) == 1
        document = json.loads(capsys.readouterr().out)
        found, problem = document["files"]
        assert document["version"] == 2
        assert 0 < found["low"] <= found["count"] <= found["high"]
        between = f"{found['count']} ({found['low']} to {found['high']})"
        assert said.startswith(f"{good}: {between}, {100 * found['unsure']:.0f} % unsure; ")
        assert len(found["verdicts"]) == pd.read_csv(good)["object_id"].nunique()
        assert set(found["verdicts"][0]) == {*stems.VERDICT_COLUMNS}
        assert found["unlike"] == []
        assert f"error: {problem['problem']}" == refused
        documented = (ROOT / "docs" / "json.md").read_text().split("## predict\n")[1]
        row = documented.split("\n## ")[0]
        assert all(f"`{name}`" in row for name in {*found, *problem})

    def test_what_is_unlike_anything_learnt_is_flagged(
        self, calibrated: Settings, domain: Domain, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A turned camera, missing boxes, one track only."""
        (path,) = drop(calibrated, domain, 1, "old", seed=5)
        rows = pd.read_csv(path)
        turned = {"centroids_x": "centroids_y", "centroids_y": "centroids_x"}
        damaged = {
            "objects move along y": rows.rename(columns=turned),
            "area: ": rows.assign(area=0.0, aspect_ratio=0.0),
            "only 1 counted track": rows[rows["object_id"] == rows["object_id"].iloc[0]],
        }
        for why, table in damaged.items():
            table.to_csv(path, index=False)
            assert main(["predict", "--home", str(calibrated.home), str(path)]) == 0
            said = capsys.readouterr().err
            assert "unlike anything learnt: " in said, why
            assert why in said

    def test_verdicts_of_any_kind_are_one_document(
        self,
        calibrated: Settings,
        domain: Domain,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Periods, bytes and a name that stands twice among them."""

        def verdicts(rows: pd.DataFrame, _model: Any) -> pd.DataFrame:
            table = pd.DataFrame({"when": [pd.Period("2026-05")], "raw": [b"\xff"], "n": [1]})
            return pd.concat([table, table[["n"]]], axis=1)

        monkeypatch.setattr(domain.module, "verdicts", verdicts)
        monkeypatch.setattr(domain.module, "verdicts_in_words", None)
        (path,) = drop(calibrated, domain, 1, "old", seed=5)
        assert main(["predict", "--json", "--home", str(calibrated.home), str(path)]) == 0
        (found,) = json.loads(capsys.readouterr().out)["files"]
        assert found["verdicts"] == [{"when": "2026-05", "raw": "b'\\xff'", "n": 1}]


class TestNobodyCanTell:
    """Where there is no calibration, or the module fails, the night goes on."""

    def test_a_pickle_of_elsewhere_has_no_errors_out_of_fold(
        self,
        home: Path,
        settings_of: Callable[..., Settings],
        domain: Domain,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """It is said, and what is unsure is told all the same."""
        settings = settings_of(home, min_new_files=99)
        settings.unlabelled_folder.mkdir()
        drop(settings, domain, 6, "old", seed=5)
        found = run_orchestrator(settings).estimate
        assert found is not None
        assert (found.mean_error, found.alarm) == (None, "")
        assert found.unsure is not None
        main(["status", "--home", str(home), "--min-new-files", "99"])
        assert "nobody can tell how wrong production is" in capsys.readouterr().out

    def test_a_mistake_of_the_module_costs_no_night(
        self,
        calibrated: Settings,
        domain: Domain,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is one line with the function's name; mended, all are estimated."""
        drop(calibrated, domain, 10, "old", seed=5)

        def fail(_model: Any, _rows: Any) -> None:
            raise KeyError("speed")

        with monkeypatch.context() as patched:
            patched.setattr(domain.module, "expected_errors", fail)
            assert run_orchestrator(calibrated).outcome is Outcome.WAITING
        assert any(
            "nothing new is estimated before labels come" in one and "expected_errors fails" in one
            for one in caplog.messages
        )
        run_orchestrator(calibrated)
        assert last(calibrated).n_new == 10

    def test_a_file_that_the_module_fails_of_costs_no_other(
        self,
        calibrated: Settings,
        domain: Domain,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is named once, and read again when the module is another one."""
        drop(calibrated, domain, 3, "old", seed=5)
        expect = domain.module.expected_errors
        wrong = sorted(calibrated.unlabelled_folder.iterdir())[1].name

        def fail_of_one(model: Any, rows: pd.DataFrame) -> Any:
            return rows["no"] if wrong in rows["file"].to_numpy() else expect(model, rows)

        with monkeypatch.context() as patched:
            patched.setattr(domain.module, "expected_errors", fail_of_one)
            run_orchestrator(calibrated)
            assert last(calibrated).n_new == 2
            run_orchestrator(calibrated)
        (told,) = (one for one in caplog.messages if "not estimated" in one)
        assert told.startswith(f"not estimated: unlabelled/{wrong}: ")
        monkeypatch.setattr(unlabelled, "_asked", lambda _settings: "another module")
        run_orchestrator(calibrated)
        assert (last(calibrated).n_new, last(calibrated).n_files) == (1, 3)

    def test_an_outage_costs_no_night(
        self, calibrated: Settings, domain: Domain, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The next one estimates."""
        drop(calibrated, domain, 2, "old", seed=5)
        database = calibrated.database
        assert database is not None
        database.rename(database.with_suffix(".away"))
        assert run_orchestrator(calibrated).outcome is Outcome.WAITING
        assert any("nothing new is estimated" in one for one in caplog.messages)
        database.with_suffix(".away").rename(database)
        run_orchestrator(calibrated)
        assert last(calibrated).n_new == 2


@pytest.mark.slow
class TestOtherCode:
    """Production that another training module made is asked by its own code."""

    def test_its_estimates_are_the_same(self, calibrated: Settings, tmp_path: Path) -> None:
        """In one process for all recordings."""
        domain = DOMAINS["stems"]
        drop(calibrated, domain, 4, "new", seed=7)
        run_orchestrator(calibrated)
        here = Index.of(calibrated.home)
        assert here is not None
        (calibrated.home / INDEX_NAME).unlink()
        module = tmp_path / "train_classification_model.py"
        source = Path(domain.module.__file__).read_text()
        module.write_text(f"{source}\nANOTHER = 1\n")
        done = script(
            "pipeline_orchestrator.py",
            *("--training-module", str(module), "--json"),
            home=calibrated.home,
        )
        assert done.returncode == 0, done.stderr
        assert "predicts with its own code" in done.stderr
        there = Index.of(calibrated.home)
        assert there is not None
        for name, one in here.files.items():
            other = there.files[name].found
            assert one.found is not None
            assert other is not None
            assert other.expected == pytest.approx(one.found.expected)
            assert (other.count, other.low, other.high) == (
                one.found.count,
                one.found.low,
                one.found.high,
            )


def test_the_champion_is_loaded_as_for_a_cycle(calibrated: Settings) -> None:
    """The estimate is of what is served: verified files, and no other."""
    registry = open_registry(calibrated)
    training = load_training_module(calibrated)
    champion = load_champion(registry, training)
    calibration = registry.versions.before_labels(champion.version, training).calibration
    assert calibration is not None
    assert calibration.n_recordings == len(champion.manifest.files)
