"""A past that is lived again: like the first time, and in a home of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    BATCH,
    DOMAINS,
    FAST,
    GRAIN,
    OLD_SEASON_FILES,
    ROOT,
    copy_home,
    flags_of,
    leave_charts_out,
    make_home,
    script,
    take_settings_away,
    train_small_models,
    write_mislabelled,
)
from sample_gts import write_recordings
from test_json import documented
from test_pipeline_orchestrator import counts, snapshot

from pipeline_orchestrator import main, run_orchestrator
from retraining import files, ground_truth
from retraining.commands import replay as command
from retraining.commands import snapshot as material
from retraining.commands.replay import Night, Replayed, replay
from retraining.commands.snapshot import Snapshot, take_snapshot
from retraining.cycle import CycleResult
from retraining.errors import EXIT_SIGNAL_BASE, PipelineError, StoppedBySignal, TryLaterError
from retraining.files import hash_file, is_private
from retraining.journal import CORRECTION, Arrival, Journal, Replaced, Withdrawn
from retraining.kept_tables import CACHE_FOLDER
from retraining.outcome import Outcome
from retraining.registry import open_registry
from retraining.registry.facts import FIRST_RUN, TAG_ARTIFACT_HASH, TAG_CYCLE, Manifest
from retraining.registry.store import create_store
from retraining.settings import Settings
from retraining.text import now
from retraining.training import load_training_module
from retraining.vouching import vouch_for

SettingsOf = Callable[..., Any]
SIGNAL_SECONDS = 240
QUICK: dict[str, Any] = {**FAST}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder for temporary files, which is empty again when all is done."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_empty_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Create the empty store of replays once and copy it: creating takes seconds."""
    empty = Settings(home=make_home(tmp_path_factory.mktemp("empty") / "home"))
    create_store(empty)

    def copy_store(settings: Settings) -> None:
        assert empty.database is not None
        assert settings.database is not None
        settings.artifacts.mkdir(parents=True)
        settings.database.parent.mkdir()
        shutil.copy2(empty.database, settings.database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material, "create_store", copy_store)
        yield


def left_in(folder: Path) -> list[str]:
    """Return the temporary folders of replays."""
    return [path.name for path in folder.iterdir() if "replay" in path.name]


# --- Like the first time ---


@dataclass(frozen=True)
class Lived:
    """A life that was lived by hand, and what its replay found."""

    results: Sequence[tuple[int, CycleResult]]
    replayed: Replayed
    before: dict[str, Any]
    after: dict[str, Any]
    counts: tuple[tuple[int, int], tuple[int, int]]
    marks: list[str]


SEASONS: list[Callable[[Path], object]] = [
    lambda new: write_mislabelled(new, seed=2),
    lambda new: write_recordings(new, BATCH, "old", seed=3, prefix="right"),
    lambda new: write_recordings(new, 2, "old", seed=4, prefix="again"),
    lambda new: write_recordings(new, BATCH, "new", seed=5, prefix="young"),
]
"""What arrives night by night: wrong labels, right ones, and at last a new season."""


def live(home: Path, n_nights: int = 3, **values: Any) -> list[tuple[int, CycleResult]]:
    """Live by hand; return how many recordings arrived each night and what its cycle found."""
    new, settings = home / "new_gts", Settings(home=home, **{**QUICK, **values})
    for path in new.glob("*.csv"):
        path.unlink()
    results = []
    for arrive in SEASONS[:n_nights]:
        time.sleep(1.1 - time.time() % 1)
        before = len(list(new.glob("*.csv")))
        arrive(new)
        n_arrived = len(list(new.glob("*.csv"))) - before
        results.append((n_arrived, run_orchestrator(settings)))
    return results


def nights_of(results: Sequence[tuple[int, CycleResult]]) -> list[Night]:
    """Return the nights that were lived by hand."""
    production, nights = 1, []
    for number, (n_arrived, result) in enumerate(results, 1):
        night = Night(
            night=number,
            arrived=n_arrived,
            outcome=result.outcome.value,
            message=result.message,
            champion=production,
            challenger=result.facts.get("challenger"),
            production=result.facts["production"],
        )
        production = night.production
        nights.append(night)
    return nights


def lived_with(results: Sequence[tuple[int, CycleResult]]) -> dict[str, tuple[int, float]]:
    """Return name -> version and error when each recording was first monitored by hand."""
    found: dict[str, tuple[int, float]] = {}
    for night, (_, result) in zip(nights_of(results), results, strict=True):
        for one in result.recordings:
            found.setdefault(one.name, (night.champion, one.champion_error))
    return found


@pytest.fixture(scope="module")
def lived(
    history_of: Callable[..., tuple[Path, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Lived:
    """Live, and live again."""
    folder = tmp_path_factory.mktemp("replayed")
    with pytest.MonkeyPatch.context() as patch:
        leave_charts_out(patch)
        train_small_models(patch)
        home, results = history_of(DOMAINS["stems"], "replayed", live, folder / "home")
        hook = f"touch {folder / 'told'}"
        settings = Settings(home=home, on_promotion=hook, on_attention=hook, **QUICK)
        n_before, before = counts(settings), snapshot(home)
        replayed = replay(settings, [settings], run_orchestrator)
        after = snapshot(home)
        marks = [path.name for path in folder.iterdir()]
        return Lived(results, replayed, before, after, (n_before, counts(settings)), marks)


@pytest.mark.slow
class TestALife:
    """Three nights: a wrong promotion, its rollback, a healthy one."""

    def test_the_nights_are_those_that_were_lived(self, lived: Lived) -> None:
        """Outcome, verdict with its p-values, and versions."""
        (life,) = lived.replayed.lives
        assert list(life.nights) == nights_of(lived.results)
        outcomes = [one.outcome for one in life.nights]
        assert outcomes == ["promoted", "rolled_back", "healthy"]

    def test_each_recording_has_the_error_that_was_lived_with(self, lived: Lived) -> None:
        """By the version that was production when it was first monitored."""
        (life,) = lived.replayed.lives
        expected = lived_with(lived.results)
        assert len(expected) == 2 * BATCH + 2
        found = {one.name: (one.version, one.error) for one in life.lived_with}
        assert found == expected
        assert {version for version, _ in expected.values()} == {1, 2}
        errors = [error for _, error in expected.values()]
        figures = life.figures(limit=10.0)
        assert figures["mean_error"] == pytest.approx(sum(errors) / len(errors))
        assert figures["share_above"] == sum(error > 10 for error in errors) / len(errors)

    @pytest.mark.slow
    @pytest.mark.sampled(0.5)
    @pytest.mark.usefixtures("fast_training")
    @pytest.mark.parametrize(
        "values",
        [
            {"min_new_files": 4, "window": 8, "threshold": 5.0},
            {"min_new_files": 7, "decide": "bound", "random_state": 7},
        ],
    )
    def test_other_settings_come_to_what_they_come_to_by_hand(
        self, home: Path, registered_template: Path, tmp_path: Path, values: dict[str, Any]
    ) -> None:
        """A past under some settings, replayed under others, against a home that has these."""
        live(home, len(SEASONS))
        other = copy_home(registered_template, tmp_path / "other")
        results = live(other, len(SEASONS), **values)
        settings = Settings(home=home, **{**QUICK, **values})
        (life,) = replay(settings, [settings], run_orchestrator).lives
        found = [(one.arrived, one.outcome, one.message) for one in life.nights]
        assert found == [(n, one.outcome.value, one.message) for n, one in results]
        assert {"promoted", "not_promoted"} & {one.outcome for one in life.nights}
        errors = {one.name: one.error for one in life.lived_with}
        monitored: dict[str, float] = {}
        for _, result in results:
            for one in result.recordings:
                monitored.setdefault(one.name, one.champion_error)
        assert errors == monitored

    def test_the_figures_count_the_nights(self, lived: Lived) -> None:
        """Of one combination: that of the home."""
        (life,) = lived.replayed.lives
        outcomes = [result.outcome for _, result in lived.results]
        figures = life.figures(limit=10.0)
        assert figures["promotions"] == outcomes.count(Outcome.PROMOTED) == 1
        assert figures["rollbacks"] == outcomes.count(Outcome.ROLLED_BACK) == 1
        trained = (Outcome.PROMOTED, Outcome.NOT_PROMOTED)
        assert figures["retrainings"] == sum(one in trained for one in outcomes)
        assert (figures["failures"], figures["threshold"], figures["window"]) == (0, 10.0, 30)
        assert lived.replayed.notes == ()

    def test_nothing_is_changed_in_the_home(self, lived: Lived) -> None:
        """No file and no time of one, no run and no version; no hook is run."""
        assert lived.after == lived.before
        assert lived.counts[0] == lived.counts[1]
        assert lived.marks == ["home"]

    def test_json_is_what_is_documented(self, lived: Lived) -> None:
        """Every key, at every depth."""
        facts = json.loads(json.dumps(lived.replayed.as_facts()))
        assert set(facts) == set(documented("replay"))
        text = (ROOT / "docs" / "json.md").read_text()
        (one,) = facts["combinations"]
        for name in (*one, *one["events"][0], *one["by_recording"][0]):
            assert f"`{name}`" in text, name

    def test_the_table_has_a_row_for_each_combination(self, lived: Lived) -> None:
        """With a head, in columns."""
        headline, heads, row = lived.replayed.as_lines()
        assert headline == (
            f"{2 * BATCH + 2} recordings on 3 nights, beginning with version 1 and "
            f"{OLD_SEASON_FILES} recordings that it learnt"
        )
        assert heads.split()[:4] == ["threshold", "min-new-files", "window", "decide"]
        assert row.split()[:5] == ["10", "%", f"{BATCH}", "30", "point"]
        assert len(heads) == len(row)


# --- What it begins with ---


@pytest.fixture
def settings(home: Path) -> Settings:
    """Give quick settings of a home whose new files nobody has seen yet."""
    return Settings(home=home, **QUICK)


@pytest.fixture
def take(settings: Settings, tmp_path: Path) -> Callable[..., Snapshot]:
    """Give what takes a snapshot of the home."""

    def taken(number: int | None = None) -> Snapshot:
        folder = tmp_path / "snapshot"
        folder.mkdir()
        return take_snapshot(settings, load_training_module(settings), folder, number)

    return taken


def names(nights: Sequence[Sequence[Path]]) -> list[list[str]]:
    """Return the names of each night."""
    return [sorted(path.name for path in night) for night in nights]


def note_arrivals(home: Path, *nights: Sequence[str]) -> None:
    """Let the journal tell that files of new_gts/ came on some nights."""
    for number, night in enumerate(nights):
        at = f"2026-05-{number + 1:02d}T02:00:00+00:00"
        Journal(home).append(
            *(Arrival(hash_file(home / "new_gts" / name), "", name, at) for name in night)
        )


def note_correction(home: Path, path: Path, old_sha256: str) -> None:
    """Let the journal tell that a file took the place of another content."""
    Journal(home).append(
        Replaced(
            sha256=hash_file(path),
            old_sha256=old_sha256,
            source=f"new_gts/{path.name}",
            folder=path.parent.name,
            name=path.name,
            kept_as=f"{path.stem}.old.csv",
            reason=CORRECTION,
            labels_changed=0.1,
            by_person=True,
            at=now(),
        )
    )


def corrected(path: Path) -> str:
    """Let another content take the place of a file, which goes to replaced/; return its SHA-256."""
    replaced, sha256 = path.parents[1] / "used_gts" / "replaced", hash_file(path)
    replaced.mkdir(exist_ok=True)
    path.rename(replaced / f"{path.stem}.old.csv")
    (text,) = [(replaced / f"{path.stem}.old.csv").read_text()]
    path.write_text(text.replace("True", "False", 1))
    note_correction(path.parents[1], path, sha256)
    return sha256


class TestTheOrder:
    """Which recordings come on which night."""

    def test_it_is_that_of_the_journal(self, home: Path, take: Callable[..., Snapshot]) -> None:
        """Recordings of one night together; what no night has seen comes last."""
        note_arrivals(home, ["new_05.csv", "new_01.csv"], ["new_03.csv"])
        taken = take()
        assert names(taken.nights) == [
            ["new_01.csv", "new_05.csv"],
            ["new_03.csv"],
            ["new_02.csv", "new_04.csv", "new_06.csv"],
        ]
        assert taken.notes == ("what no night has seen yet comes last (3)",)
        assert taken.n_learnt == OLD_SEASON_FILES

    def test_without_nights_it_is_that_of_the_modification_times(
        self, home: Path, take: Callable[..., Snapshot]
    ) -> None:
        """One file a night, and this is said."""
        in_order = [f"new_{number:02d}.csv" for number in (4, 1, 6, 2, 5, 3)]
        for number, name in enumerate(in_order):
            os.utime(home / "new_gts" / name, (1_700_000_000 + number,) * 2)
        note_arrivals(home, in_order)
        taken = take()
        assert names(taken.nights) == [[name] for name in in_order]
        (note,) = taken.notes
        assert note == (
            "the journal does not tell the nights of these recordings apart: they come one a "
            "night, in the order of their files' modification times"
        )

    def test_a_correction_comes_when_its_recording_came(
        self, home: Path, take: Callable[..., Snapshot]
    ) -> None:
        """With today's content; the old one does not come."""
        note_arrivals(home, ["new_01.csv"], [f"new_{n:02d}.csv" for n in range(2, BATCH + 1)])
        path = home / "new_gts" / "new_01.csv"
        before = corrected(path)
        taken = take()
        assert names(taken.nights)[0] == ["new_01.csv"]
        assert hash_file(taken.nights[0][0]) == hash_file(path) != before
        assert taken.notes == ("left out: replaced files (1)",)


class TestWhatIsLeftOut:
    """It is counted, with the reason."""

    def test_what_the_first_version_learnt_is_found_wherever_it_lies(
        self, home: Path, take: Callable[..., Snapshot]
    ) -> None:
        """In used_gts/, corrected since in replaced/, again in new_gts/; or it is gone."""
        used = home / "used_gts"
        (used / "old_01.csv").rename(home / "new_gts" / "back.csv")
        before = corrected(used / "old_02.csv")
        (used / "old_03.csv").unlink()
        taken = take()
        learnt = taken.folder / "first" / "used_gts"
        kept = {path.name: hash_file(path) for path in learnt.iterdir()}
        assert sorted(kept) == [f"old_{number:02d}.csv" for number in (1, 2, 4, 5, 6)]
        assert kept["old_02.csv"] == before
        assert "back.csv" not in [path.name for path in taken.recordings]
        assert taken.notes[1:] == (
            "left out: recordings that version 1 learnt and that are not at hand any more (1)",
            "left out: newer contents of recordings that version 1 learnt (1)",
        )

    def test_a_copy_in_other_bytes_does_not_arrive(
        self, home: Path, take: Callable[..., Snapshot]
    ) -> None:
        """The version learnt it: its error would not be one on the unseen."""
        path = home / "used_gts" / "old_01.csv"
        (home / "new_gts" / "copy.csv").write_text(path.read_text() + "\n")
        path.unlink()
        taken = take()
        assert "copy.csv" not in [one.name for one in taken.recordings]
        assert taken.notes[-1] == "left out: what version 1 learnt, in other bytes (1)"

    def test_rejected_and_withdrawn_ones_do_not_arrive(
        self, home: Path, take: Callable[..., Snapshot]
    ) -> None:
        """Whoever took them out had a reason; also where the file is back."""
        new = home / "new_gts"
        (new / "rejected").mkdir()
        (new / "new_01.csv").rename(new / "rejected" / "new_01.csv")
        sha256 = hash_file(new / "new_02.csv")
        Journal(home).append(
            Withdrawn(sha256, "", [], "new_gts", "new_02.csv", "new_02.csv", "", "", now())
        )
        taken = take()
        assert sorted(one.name for one in taken.recordings) == [
            f"new_{number:02d}.csv" for number in range(3, BATCH + 1)
        ]
        assert taken.notes[1:] == (
            "left out: withdrawn recordings (1)",
            "left out: rejected files (1)",
        )

    def test_two_files_of_one_name_both_arrive(
        self, home: Path, take: Callable[..., Snapshot]
    ) -> None:
        """Used and new ones may be called the same."""
        write_recordings(home / "used_gts", 1, "new", seed=9, prefix="new")
        taken = take()
        arrived = sorted(one.name for one in taken.recordings)
        assert len(arrived) == BATCH + 1
        assert arrived[:2] == ["new_01-1.csv", "new_01.csv"]


class TestTheFirstVersion:
    """The oldest one that verifies, or the one that is named."""

    @staticmethod
    def spoil(settings: Settings) -> None:
        """Edit a file of version 1 in the store."""
        (path,) = settings.artifacts.rglob("input_example.json")
        path.write_text("[]")

    def test_one_that_does_not_verify_is_no_beginning(
        self, settings: Settings, take: Callable[..., Snapshot]
    ) -> None:
        """The message says why."""
        self.spoil(settings)
        with pytest.raises(
            PipelineError,
            match="version 1 is no beginning: the files of version 1 are not those that were "
            "registered",
        ):
            take()

    def test_the_next_one_is_taken_and_can_be_named(
        self, settings: Settings, take: Callable[..., Snapshot], tmp_path: Path
    ) -> None:
        """After version 1 was damaged; what version 2 learnt does not arrive."""
        (example,) = settings.artifacts.rglob("input_example.json")
        registry, first = open_registry(settings), take().origin
        new = {path.name: hash_file(path) for path in settings.new_gts.iterdir()}
        learnt = Manifest.of(new, dict.fromkeys(new, 1))
        with registry.runs.open(FIRST_RUN, {TAG_CYCLE: "second"}) as run_id:
            second = registry.versions.adopt(
                first.files,
                run_id=run_id,
                manifest=learnt,
                out_of_fold=b"",
                tags={TAG_CYCLE: "second"},
            )
        vouch_for(settings, registry, second)
        write_recordings(settings.new_gts, 1, "new", seed=7, prefix="later")
        example.write_text("[]")
        training, folder = load_training_module(settings), tmp_path / "second"
        folder.mkdir()
        taken = take_snapshot(settings, training, folder, None)
        assert (taken.origin.number, taken.n_learnt) == (2, BATCH)
        assert len(taken.recordings) == OLD_SEASON_FILES + 1
        assert taken.notes[0].startswith("version 1 is no beginning: ")
        with pytest.raises(PipelineError, match="version 1 is no beginning"):
            take_snapshot(settings, training, folder, 1)
        with pytest.raises(PipelineError, match="there is no version 3"):
            take_snapshot(settings, training, folder, 3)

    def test_one_that_verifies_and_cannot_be_used_names_the_way_out(
        self,
        settings: Settings,
        take: Callable[..., Snapshot],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Its types may be trusted no longer."""
        module = load_training_module(settings).module
        monkeypatch.setattr(module, "TRUSTED_TYPES", ())
        with pytest.raises(
            PipelineError,
            match=r"(?s)begin with version 1, which cannot be used: .* holds types that .*; begin "
            r"with another one, named by --champion",
        ):
            take()

    def test_without_a_version_there_is_nothing_to_begin_with(self, settings: Settings) -> None:
        """Registration comes first."""
        shutil.rmtree(settings.home / "mlflow_server")
        with pytest.raises(PipelineError, match="run: python register_first_model.py"):
            replay(settings, [settings], run_orchestrator)

    def test_without_new_recordings_there_is_nothing_to_replay(
        self, settings: Settings, take: Callable[..., Snapshot]
    ) -> None:
        """It is said before anything is lived."""
        for path in settings.new_gts.glob("*.csv"):
            path.unlink()
        with pytest.raises(PipelineError, match="there is nothing to replay: "):
            take()


class TestWhatMovesMeanwhile:
    """No lock keeps a nightly run out: so what it moves is noticed."""

    def test_a_file_that_is_gone(
        self,
        home: Path,
        take: Callable[..., Snapshot],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Between listing and copying."""
        listed = ground_truth.hashes_in

        def list_then_move(folder: Path, **named: Any) -> dict[str, str]:
            found = listed(folder, **named)
            (home / "new_gts" / "new_03.csv").unlink(missing_ok=True)
            return found

        monkeypatch.setattr(ground_truth, "hashes_in", list_then_move)
        with pytest.raises(TryLaterError, match="new_03.csv was moved while it was read; run agai"):
            take()

    def test_a_file_that_changes(
        self,
        home: Path,
        take: Callable[..., Snapshot],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What is copied is what was looked at."""
        listed = ground_truth.hashes_in

        def list_then_write(folder: Path, **named: Any) -> dict[str, str]:
            found = listed(folder, **named)
            with (home / "new_gts" / "new_03.csv").open("a") as stream:
                stream.write("\n")
            return found

        monkeypatch.setattr(ground_truth, "hashes_in", list_then_write)
        with pytest.raises(TryLaterError, match="new_03.csv changed while it was copied; run agai"):
            take()

    def test_another_command_that_takes_files_in(
        self,
        home: Path,
        take: Callable[..., Snapshot],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The journal tells."""
        at_rest = files.settled

        def settle_then_arrive(paths: list[Path]) -> list[Path]:
            note_arrivals(home, ["new_01.csv"])
            return at_rest(paths)

        monkeypatch.setattr(material, "settled", settle_then_arrive)
        with pytest.raises(TryLaterError, match="another command is at work in .*; run again"):
            take()


@pytest.mark.slow
class TestTables:
    """What was read of recordings before is not read again."""

    def test_those_of_the_home_come_along_and_stay_for_the_next_life(
        self, settings: Settings, take: Callable[..., Snapshot]
    ) -> None:
        """Of these recordings only; the home's own are not touched."""
        sha256 = hash_file(settings.used_gts / "old_01.csv")
        own = settings.home / CACHE_FOLDER
        own.parent.mkdir(mode=0o700)
        own.mkdir(mode=0o700)
        for key in (sha256, "0" * 64):
            (own / f"{key}-code-kind").write_text("a table")
        before, taken = snapshot(settings.home), take()
        with taken.home("one") as home:
            assert [path.name for path in (home / CACHE_FOLDER).iterdir()] == [
                f"{sha256}-code-kind"
            ]
            assert is_private(home / CACHE_FOLDER)
            (home / CACHE_FOLDER / "more").write_text("another")
        assert not home.exists()
        with taken.home("two") as home:
            assert (home / CACHE_FOLDER / "more").read_text() == "another"
        assert snapshot(settings.home) == before


# --- Living ---


@pytest.mark.slow
class TestNights:
    """What holds for every night, whatever its cycle does."""

    def test_no_two_nights_have_one_time(self, settings: Settings) -> None:
        """However quick a cycle is: the journal tells nights by the second."""
        Journal(settings.home).append(Arrival("1" * 64, "", "one.csv", now()))
        last = Journal(settings.home).read().all(Arrival)[-1].at
        command._await_another_second(settings)
        assert now() > last

    def test_the_first_version_is_stored_as_it_is(self, settings: Settings) -> None:
        """Byte for byte, with its manifest, its errors and without the home's journal."""
        home = open_registry(settings)
        version = home.versions.get(1)
        manifest = home.versions.manifest(version)
        expected = version.tags[TAG_ARTIFACT_HASH], manifest.digest
        found: list[tuple[str, str]] = []

        def look(of_replay: Settings, **_: Any) -> CycleResult:
            registry = open_registry(of_replay)
            champion = registry.production.champion()
            digest = registry.versions.manifest(champion).digest
            found.append((champion.tags[TAG_ARTIFACT_HASH], digest))
            assert 1 in Journal(of_replay.home).read().vouches(of_replay.model_name)
            return run_orchestrator(of_replay)

        many = Settings(home=settings.home, n_jobs=1, min_new_files=100)
        replay(many, [many], look)
        assert found == [expected] * (BATCH + 1)

    def test_a_night_that_fails_is_a_night(
        self, settings: Settings, temporary: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As with cron, the next one goes on; a real trigger, and a disk that fails once."""
        nights: Iterator[int] = iter(range(100))

        def run(of_replay: Settings, **options: Any) -> CycleResult:
            if next(nights) == 2:
                raise PipelineError("the disk is full")
            return run_orchestrator(of_replay, **options)

        many = Settings(home=settings.home, n_jobs=1, min_new_files=100)
        caplog.set_level("INFO", "pipeline")
        found = replay(many, [many], run)
        (life,) = found.lives
        outcomes = [one.outcome for one in life.nights]
        assert outcomes == ["waiting"] * 2 + ["failed"] + ["waiting"] * 3
        assert life.nights[2].message == "the disk is full"
        assert found.table[0]["failures"] == "1"
        said = "replay 1 of 1 (threshold 10, min-new-files 100, window 30, point): night 3 of 6: "
        assert f"{said}failed" in caplog.messages
        assert left_in(temporary) == []
        # All that waits at the end was scored by the production of then.
        errors = {one.name: one.error for one in life.lived_with}
        training = load_training_module(settings)
        registry = open_registry(settings)
        model = registry.models.load(registry.versions.get(1), training)
        assert len(errors) == BATCH
        for name, error in errors.items():
            rows, _ = training.read(settings.new_gts / name)
            assert training.errors(model, [rows])["error"].iloc[0] == error

    def test_a_file_that_cannot_be_used_is_told(self, settings: Settings) -> None:
        """It has no error; the others have theirs."""
        (settings.new_gts / "bad.csv").write_text("object_id,frames\n1,2\n")
        many = Settings(home=settings.home, n_jobs=1, min_new_files=100)
        found = replay(many, [many], run_orchestrator)
        assert len(found.lives[0].lived_with) == BATCH
        assert found.as_lines()[-1] == "note: not scored: bad.csv: no cycle took it in"

    def test_a_signal_ends_it_between_two_nights(self, settings: Settings, temporary: Path) -> None:
        """Nothing is left behind."""

        def stop(of_replay: Settings, **_: Any) -> CycleResult:
            assert left_in(temporary) == [of_replay.home.parent.name]
            raise StoppedBySignal(signal.SIGTERM)

        with pytest.raises(StoppedBySignal):
            replay(settings, [settings], stop)
        assert left_in(temporary) == []

    @pytest.mark.slow
    def test_a_real_signal_has_the_usual_status(self, home: Path, temporary: Path) -> None:
        """Sent to a process that trains."""
        before = snapshot(home)
        words = ("replay", "--threshold", "1,2,3", "--min-new-files", "1", "--n-jobs", "1")
        with subprocess.Popen(
            [sys.executable, str(ROOT / "pipeline_orchestrator.py"), *words, "--home", str(home)],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if ": night 1 of " in line:
                    break
            process.send_signal(signal.SIGTERM)
            out, error = process.communicate(timeout=SIGNAL_SECONDS)
        assert process.returncode == EXIT_SIGNAL_BASE + signal.SIGTERM
        assert (out, "error: stopped by signal 15" in error) == ("", True)
        assert left_in(temporary) == []
        assert snapshot(home) == before


class TestOtherCode:
    """The training module may have changed since the first version was made."""

    @pytest.mark.slow
    def test_the_first_version_predicts_with_its_own_code(
        self, template_of: Callable[..., Path], tmp_path: Path
    ) -> None:
        """The errors are those that it had before the change."""
        home = copy_home(template_of(DOMAINS["grain"]), tmp_path / "home")
        before = Settings(home=home, **{**QUICK, **GRAIN, "min_new_files": 100})
        (life,) = replay(before, [before], run_orchestrator).lives
        take_settings_away()
        module = tmp_path / "grain_quality.py"
        module.write_text(f"{Path(GRAIN['training_module']).read_text()}\n# another edition\n")
        values = {**GRAIN, "min_new_files": 100, "training_module": module}
        words = ("replay", "--json", *flags_of(values))
        done = script("pipeline_orchestrator.py", *words, home=home)
        assert "version 1 predicts with its own code" in done.stderr
        (again,) = json.loads(done.stdout)["combinations"]
        assert len(life.lived_with) == BATCH
        assert again["by_recording"] == [asdict(one) for one in life.lived_with]


# --- The command line ---


class TestCommand:
    """Flags, what is printed, and the page."""

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (["--threshold", "5,x"], "--threshold 'x': must be a number"),
            (["--threshold", "5,,8"], "--threshold '': must be a number"),
            (["--threshold", "5,-8"], "--threshold -8.0: must be from 0 to 100000"),
            (["--threshold", "nan"], "--threshold nan: must be from 0 to 100000"),
            (["--min-new-files", "5,1.5"], "--min-new-files '1.5': must be an integer"),
            (["--min-new-files", "0"], "--min-new-files 0: must be from 1 to 100000 files"),
            (["--window", "30,0"], "--window 0: must be from 1 to 100000 files"),
            (["--decide", "point,guess"], "--decide 'guess': must be one of point, bound"),
            (["--report", "/nowhere/page.html"], "there is no folder /nowhere"),
        ],
    )
    def test_a_wrong_value_is_named(
        self, home: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
    ) -> None:
        """With its range; before anything is read."""
        assert main(["replay", *words, "--home", str(home)]) == 2
        assert complaint in capsys.readouterr().err

    def test_every_combination_is_lived(
        self, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """JSON on standard output, a page where it is wanted."""
        target = tmp_path / "page.html"
        words = ["--min-new-files", "100, 99", "--threshold", "8,8", "--report", str(target)]
        assert main(["replay", *words, "--n-jobs", "1", "--json", "--home", str(home)]) == 0
        found = json.loads(capsys.readouterr().out)
        compared = [(one["min_new_files"], one["threshold"]) for one in found["combinations"]]
        assert compared == [(100, 8), (99, 8)]
        assert (found["limit"], found["recordings"], found["learnt"]) == (10, BATCH, 6)
        one, other = (each["by_recording"] for each in found["combinations"])
        assert one == other
        text = target.read_text()
        assert text.count("What each night said") == 2
        assert "waiting: 6 of 99 new ground truth files" in text
