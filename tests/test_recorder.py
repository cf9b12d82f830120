"""What a cycle does with files that are not new, whatever its verdict."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, OLD_SEASON_FILES, both_modules_in_time, flags_of
from relabel import relabel, save_again, sha256
from sample_gts import write_recordings
from test_pipeline_orchestrator import contents, counts, registry_of, snapshot

from pipeline_orchestrator import champion_on_used, main, run_orchestrator
from retraining import ground_truth
from retraining.commands.lineage import lineage
from retraining.commands.rollback import rollback
from retraining.commands.status import as_lines, status
from retraining.commands.withdraw import withdraw
from retraining.cycle import Cycle
from retraining.journal import Journal, Withdrawn
from retraining.outcome import Outcome
from retraining.training import load_training_module

SettingsOf = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("fast_training")

each_verdict = pytest.mark.parametrize(
    ("outcome", "values", "name"),
    [
        (Outcome.WAITING, {"min_new_files": BATCH + 1}, "old_01.csv"),
        (Outcome.HEALTHY, {"threshold": 1000}, "again.csv"),
        (Outcome.NOT_PROMOTED, {"min_improvement": 90}, "old_01.csv"),
        (Outcome.PROMOTED, {}, "again.csv"),
    ],
)


def page_of(home: Path) -> str:
    """Return the newest page of a cycle."""
    return max((home / "reports").glob("*.html"), key=os.path.getmtime).read_text()


def manifest_of(settings: Any, number: int) -> dict[str, str]:
    """Return SHA-256 -> name of what a version learnt."""
    registry = registry_of(settings)
    return dict(registry.versions.manifest(registry.versions.get(number)).names)


class TestCorrections:
    """A corrected recording takes the place of the old one."""

    @both_modules_in_time
    @each_verdict
    def test_it_takes_the_place_whatever_the_verdict(
        self,
        home: Path,
        settings_of: SettingsOf,
        outcome: Outcome,
        values: dict[str, Any],
        name: str,
    ) -> None:
        """Under its old name or another; the old one is kept with the date; it is no evidence."""
        place = home / "used_gts" / "old_01.csv"
        old = place.read_bytes()
        new = relabel(place, home / "new_gts" / name).read_bytes()
        result = run_orchestrator(settings_of(home, **values))
        assert result.outcome is outcome
        assert place.read_bytes() == new
        assert not (home / "new_gts" / name).exists()
        (kept,) = (home / "used_gts" / "replaced").iterdir()
        assert re.fullmatch(r"old_01\.20\d\d-\d\d-\d\d\.csv", kept.name)
        assert kept.read_bytes() == old
        judged = [one.name for one in result.recordings]
        assert len(judged) == (0 if outcome is Outcome.WAITING else BATCH)
        assert not {"old_01.csv", name} & {*judged}
        if outcome in (Outcome.NOT_PROMOTED, Outcome.PROMOTED):
            learnt = manifest_of(settings_of(home), 2)
            assert learnt[sha256(place)] == "old_01.csv"
            assert sha256(kept) not in learnt
            assert len(learnt) == OLD_SEASON_FILES + BATCH

    @both_modules_in_time
    def test_it_is_told_wherever_people_look(
        self,
        home: Path,
        settings_of: SettingsOf,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
        domain: Any,
    ) -> None:
        """On the terminal, in the log, in the page, by `lineage` and by `status`."""
        caplog.set_level("INFO", "pipeline")
        relabel(home / "used_gts/old_01.csv", home / "new_gts/again.csv")
        words = flags_of({**domain.settings, "home": home, "threshold": 1000})
        words += ["--min-new-files", str(BATCH)]
        assert main(["run", *words]) == 0
        first, note = capsys.readouterr().out.splitlines()
        assert first.startswith("healthy: ")
        told = "corrected: again.csv takes the place of used_gts/old_01.csv, "
        assert note.startswith(told)
        assert f"{told}" in caplog.text
        assert told in page_of(home)
        (change,) = lineage(settings_of(home), "old_01.csv")["changes"]
        assert f": {told}" in change
        found = lineage(settings_of(home), "old_01.csv")
        assert (found["versions"], found["older_content"]) == ([], [1])
        state = status(settings_of(home), None)
        assert state["training_data"] == ["production learnt an older version of old_01.csv"]
        assert state["problems"] == []
        assert state["training_data"][0] in as_lines(state)
        assert state["training_data"][0] in page_of(home)

    def test_json_has_it(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """As `notes`."""
        relabel(home / "used_gts/old_01.csv", home / "new_gts/again.csv")
        words = ["--json", "--home", str(home), "--min-new-files", "6", "--threshold", "1000"]
        assert main(["run", *words]) == 0
        (note,) = json.loads(capsys.readouterr().out)["notes"]
        assert note.startswith("corrected: again.csv takes the place of used_gts/old_01.csv, ")

    @pytest.mark.slow
    def test_its_old_error_is_no_proof_that_nothing_was_forgotten(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The champion's out-of-fold error was of other labels."""
        settings = settings_of(home)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        place = home / "used_gts" / "old_01.csv"
        relabel(place, home / "new_gts" / "again.csv")
        seen = []

        def look(cycle: Cycle, challenger: Any) -> Any:
            seen.append(champion_on_used(cycle, challenger))
            return seen[-1]

        monkeypatch.setattr("pipeline_orchestrator.champion_on_used", look)
        write_new(home, seed=5)
        run_orchestrator(settings_of(home, threshold=0))
        (errors,) = seen
        others = {sha256(path) for path in (home / "used_gts").glob("*.csv")} - {sha256(place)}
        assert sha256(place) not in errors.index
        assert {*errors.index} == others & {*manifest_of(settings, 2)}
        assert len(errors) == OLD_SEASON_FILES + BATCH - 1

    @both_modules_in_time
    def test_a_waiting_file_keeps_its_name_and_counts(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """It was never learnt: its corrected labels count as any, and bring nothing new."""
        waiting = home / "new_gts" / "new_01.csv"
        old = waiting.read_bytes()
        run_orchestrator(settings_of(home, threshold=1000))
        new = relabel(waiting, home / "new_gts" / "again.csv").read_bytes()
        assert run_orchestrator(settings_of(home, threshold=1000)).outcome is Outcome.ALREADY_JUDGED
        result = run_orchestrator(settings_of(home, threshold=999))
        assert waiting.read_bytes() == new
        (kept,) = (home / "used_gts" / "replaced").iterdir()
        assert kept.read_bytes() == old
        assert len(result.recordings) == BATCH
        assert "new_01.csv" in [one.name for one in result.recordings]
        assert list((home / "new_gts").glob("again*")) == []

    def test_a_crash_after_the_journal_is_finished_by_the_next_start(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Written first, moved then; twice is as good as once."""
        place = home / "used_gts" / "old_01.csv"
        new = relabel(place, home / "new_gts" / "again.csv").read_bytes()

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ground_truth, "finish_replacement", die)
            run_orchestrator(settings_of(home))
        assert (home / "new_gts" / "again.csv").exists()
        for _ in range(2):
            run_orchestrator(settings_of(home, min_new_files=100))
            assert place.read_bytes() == new
            assert not (home / "new_gts" / "again.csv").exists()
            assert len([*(home / "used_gts" / "replaced").iterdir()]) == 1


def write_new(home: Path, seed: int) -> None:
    """Let a batch of the new season arrive."""
    write_recordings(home / "new_gts", BATCH, "new", seed=seed, prefix=f"late_{seed}")


class TestParkedCorrections:
    """Whoever may drop files must not be able to turn the training data around."""

    @both_modules_in_time
    def test_status_lists_them_with_a_command_that_works(
        self,
        home: Path,
        settings_of: SettingsOf,
        domain: Any,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """More than a fifth of the labels, or a fourth correction: taken from what is printed."""
        relabel(home / "used_gts/old_01.csv", home / "new_gts/turned round.csv", share=0.5)
        settings = settings_of(home, threshold=1000)
        result = run_orchestrator(settings)
        assert len(result.recordings) == BATCH
        assert "parked: turned round.csv contradicts 5" in " ".join(result.notes)
        old = (home / "used_gts/old_01.csv").read_bytes()
        words = flags_of({**domain.settings, "home": home})
        assert main(["status", *words]) == 0
        (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("parked")]
        command = line.partition("python pipeline_orchestrator.py ")[2]
        assert main([*shlex.split(command), *words]) == 0
        assert "takes the place of used_gts/old_01.csv" in capsys.readouterr().out
        assert (home / "used_gts/old_01.csv").read_bytes() != old
        assert status(settings, None)["parked"] == []
        assert list((home / "new_gts/rejected").iterdir()) == []


class TestArchiveBeforeIntake:
    """What production has learnt is archived, never called a duplicate."""

    @pytest.fixture
    def lost(
        self,
        history_of: Callable[..., tuple[Path, Any]],
        domain: Any,
        settings_of: SettingsOf,
        tmp_path: Path,
    ) -> Path:
        """Give a home whose version 2 lost, with its files waiting."""

        def lose(home: Path) -> None:
            result = run_orchestrator(settings_of(home, min_improvement=90))
            assert result.outcome is Outcome.NOT_PROMOTED

        return history_of(domain, "lost", lose, tmp_path / "home")[0]

    @both_modules_in_time
    @pytest.mark.parametrize("how", ["bytes", "saved again"])
    def test_a_loser_that_was_promoted_by_hand(
        self, lost: Path, settings_of: SettingsOf, how: str
    ) -> None:
        """The next cycle archives its files; back again, they stay used and prove something."""
        settings = settings_of(lost, min_new_files=1)
        registry = registry_of(settings)
        client, name = registry.runs.connection.client, settings.model_name
        client.set_registered_model_alias(name, "production", "2")
        if how == "saved again":
            for path in sorted((lost / "new_gts").glob("*.csv")):
                save_again(path, path)
        waiting = contents(lost / "new_gts")
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.WAITING
        assert len(result.notes) == BATCH
        assert set(waiting) <= set(contents(lost / "used_gts"))
        assert contents(lost / "new_gts") == []
        assert not (lost / "new_gts" / "rejected").exists()
        (problem,) = status(settings, None)["problems"]
        assert problem.startswith("by hand: the alias 'production' was moved")
        assert rollback(settings, 2).startswith("recorded: version 2")
        assert status(settings, None)["problems"] == []

        client.set_registered_model_alias(name, "production", "1")
        state = status(settings, None)
        assert [one for one in state["problems"] if "used_gts" in one] == []
        assert "which another version learnt" in " ".join(state["training_data"])

    @pytest.mark.slow
    def test_files_of_another_version_serve_no_forgetting(
        self, lost: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Trained on by the next challenger; the champion, which never met them, is scored."""
        settings = settings_of(lost)
        registry = registry_of(settings)
        client, name = registry.runs.connection.client, settings.model_name
        client.set_registered_model_alias(name, "production", "2")
        run_orchestrator(settings_of(lost, min_new_files=1))
        archived = {sha256(path) for path in (lost / "used_gts").glob("new_*.csv")}
        assert len(archived) == BATCH
        client.set_registered_model_alias(name, "production", "1")

        seen = []

        def look(cycle: Cycle, challenger: Any) -> Any:
            seen.append((cycle.champion, champion_on_used(cycle, challenger)))
            return seen[-1][1]

        monkeypatch.setattr("pipeline_orchestrator.champion_on_used", look)
        write_new(lost, seed=5)
        result = run_orchestrator(settings)
        assert len(result.recordings) == BATCH
        ((champion, errors),) = seen
        assert archived <= {*errors.index}
        assert archived <= {*manifest_of(settings, 3)}
        training = load_training_module(settings)
        for path in (lost / "used_gts").glob("new_*.csv"):
            rows, _ = training.read(path)
            by_hand = training.errors(champion.model, [rows])["error"].iloc[0]
            assert errors[sha256(path)] == by_hand

    @both_modules_in_time
    def test_a_gone_file_comes_back_in_other_bytes(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Production learnt it: it is restored, never evidence."""
        place = home / "used_gts" / "old_01.csv"
        save_again(place, home / "new_gts" / "back.csv")
        place.unlink()
        assert "used_gts/ lacks old_01.csv" in " ".join(status(settings_of(home), None)["problems"])
        result = run_orchestrator(settings_of(home, threshold=1000))
        assert "back.csv" not in [one.name for one in result.recordings]
        assert place.is_file()
        state = status(settings_of(home), None)
        assert state["training_data"] == ["production learnt old_01.csv in other bytes"]
        assert state["problems"] == []


class TestHardLinks:
    """Whoever dropped a file cannot change it once it is used."""

    @both_modules_in_time
    def test_an_archived_file_has_an_inode_of_its_own(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Of a promotion and of a correction."""
        relabel(home / "used_gts/old_01.csv", home / "new_gts/again.csv")
        for path in (home / "new_gts").glob("*.csv"):
            os.link(path, home / f"kept {path.name}")
        assert run_orchestrator(settings_of(home)).outcome is Outcome.PROMOTED
        before = contents(home / "used_gts")
        assert {*manifest_of(settings_of(home), 2)} == {*before}
        for path in home.glob("kept *.csv"):
            path.write_bytes(b"something else\n")
        assert contents(home / "used_gts") == before
        assert contents(home / "new_gts") == []
        assert run_orchestrator(settings_of(home)).outcome is Outcome.WAITING


class TestDryRun:
    """`--dry-run` with files that would be moved."""

    @pytest.fixture
    def busy(self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Give a home with a correction of each kind, a withdrawal that was cut off, and a note."""
        relabel(home / "used_gts/old_01.csv", home / "new_gts/corrected.csv")
        relabel(home / "used_gts/old_02.csv", home / "new_gts/turned.csv", share=0.5)
        relabel(home / "new_gts/new_01.csv", home / "new_gts/waiting.csv")
        save_again(home / "used_gts/old_03.csv", home / "new_gts/copy.csv")

        def die(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("retraining.ground_truth.finish_withdrawal", die)
            withdraw(settings_of(home), ["old_04.csv"], delete=False, reason="")
        assert Journal(home).read().all(Withdrawn)
        assert (home / "used_gts/old_04.csv").exists()
        return home

    @both_modules_in_time
    def test_not_one_byte_changes_and_the_corrected_labels_are_trained_on(
        self, busy: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No file, time, run or version; the notes say that nothing was changed."""
        settings = settings_of(busy)
        trained_on: list[dict[str, str]] = []
        training_folder = ground_truth.training_folder

        @contextlib.contextmanager
        def note(*values: Any) -> Iterator[Any]:
            with training_folder(*values) as found:
                trained_on.append(dict(found[1]))
                yield found

        runs, before = counts(settings), snapshot(busy)
        monkeypatch.setattr("pipeline_orchestrator.ground_truth.training_folder", note)
        result = run_orchestrator(settings, dry_run=True)
        assert (counts(settings), snapshot(busy)) == (runs, before)
        assert list(busy.glob(".training-*")) == []
        assert all(one.startswith("dry run, nothing changed: ") for one in result.notes)
        assert len(result.notes) == 3
        (hashes,) = trained_on
        assert hashes["old_01.csv"] == sha256(busy / "new_gts/corrected.csv")
        assert hashes["new_01.csv"] == sha256(busy / "new_gts/waiting.csv")
        assert hashes["old_02.csv"] == sha256(busy / "used_gts/old_02.csv")
