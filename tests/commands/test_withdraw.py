"""A recording leaves the training data, is remembered, and comes back only if somebody says so."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import BATCH, OLD_SEASON_FILES, Domain, both_modules_in_time, flags_of
from relabel import relabel, save_again, sha256
from test_pipeline_orchestrator import registry_of, snapshot
from test_recorder import manifest_of

from pipeline_orchestrator import main, run_orchestrator
from retraining import ground_truth
from retraining.commands.lineage import as_lines as lineage_lines
from retraining.commands.lineage import lineage
from retraining.commands.reproduce import reproduce
from retraining.commands.status import status
from retraining.commands.withdraw import as_lines, undo, withdraw
from retraining.errors import PipelineError
from retraining.files import hash_bytes
from retraining.ground_truth import rejected_files
from retraining.journal import Journal, Withdrawn
from retraining.kept_tables import CACHE_FOLDER, KeptTables
from retraining.outcome import Outcome

SettingsOf = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("fast_training")


def take_out(settings: Any, *names: str, delete: bool = False, reason: str = "") -> Any:
    """Withdraw recordings."""
    return withdraw(settings, names, delete=delete, reason=reason)


class TestWithdraw:
    """`withdraw NAME...`."""

    @both_modules_in_time
    def test_a_used_recording(self, home: Path, settings_of: SettingsOf) -> None:
        """Kept in withdrawn/; who learnt it is said; nobody has to look at `status`."""
        content = (home / "used_gts/old_01.csv").read_bytes()
        settings = settings_of(home)
        (one,) = take_out(settings, "old_01.csv", reason="wrong field")["withdrawn"]
        assert one == {
            "name": "old_01.csv",
            "sha256": hash_bytes(content),
            "kept_as": "withdrawn/old_01.csv",
            "learnt_by": [1],
        }
        assert not (home / "used_gts/old_01.csv").exists()
        assert (home / "withdrawn/old_01.csv").read_bytes() == content
        state = status(settings, None)
        assert state["training_data"] == ["production learnt old_01.csv, withdrawn since"]
        assert (state["problems"], state["unfinished"]) == ([], None)

    @both_modules_in_time
    def test_a_waiting_recording(self, home: Path, settings_of: SettingsOf) -> None:
        """No version learnt it; the batch has one less."""
        settings = settings_of(home, threshold=1000, min_new_files=1)
        found = take_out(settings, "new_gts/new_01.csv")
        (one,) = found["withdrawn"]
        assert (one["learnt_by"], one["kept_as"]) == ([], "withdrawn/new_01.csv")
        assert as_lines(found) == [
            "withdrawn: new_01.csv, kept as withdrawn/new_01.csv; no version learnt it"
        ]
        assert len(run_orchestrator(settings).recordings) == BATCH - 1

    def test_an_unknown_name_changes_nothing(
        self, home: Path, settings_of: SettingsOf, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Not even the known ones before it; one line, status 1."""
        before = snapshot(home)
        del before[".pipeline.lock"]
        words = ["withdraw", "old_01.csv", "nowhere.csv", "--home", str(home)]
        assert main(words) == 1
        assert capsys.readouterr().err.startswith(
            "error: there is no recording 'nowhere.csv' in used_gts/ or new_gts/"
        )
        after = snapshot(home)
        assert {name: after[name] for name in before} == before
        assert Journal(home).read().all(Withdrawn) == []
        with pytest.raises(PipelineError, match="nothing is withdrawn as old_01.csv; .* none"):
            undo(settings_of(home), ["old_01.csv"])

    @both_modules_in_time
    def test_a_gone_file_that_production_learnt(self, home: Path, settings_of: SettingsOf) -> None:
        """What `status` advises, word by word: the problem is none any more."""
        gone = home / "used_gts/old_01.csv"
        copy = save_again(gone, home / "copy.csv").read_bytes()
        settings = settings_of(home, min_new_files=1, threshold=1000)
        run_orchestrator(settings)
        gone.unlink()
        (problem,) = status(settings, None)["problems"]
        command = problem.partition("python pipeline_orchestrator.py ")[2]
        assert shlex.split(command) == ["withdraw", "old_01.csv"]
        found = take_out(settings, "old_01.csv")
        assert found["withdrawn"][0]["kept_as"] == ""
        assert found["withdrawn"][0]["learnt_by"] == [1]
        assert status(settings, None)["problems"] == []
        (home / "new_gts/back.csv").write_bytes(copy)
        run_orchestrator(settings)
        (refused,) = rejected_files(settings)
        assert (refused.name, refused.what[:27]) == ("back.csv", "was withdrawn as old_01.csv")

    def test_json(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """One document, of both directions."""
        words = ["--json", "--home", str(home)]
        assert main(["withdraw", "old_01.csv", "old_02.csv", "--reason", "because", *words]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [one["name"] for one in found["withdrawn"]] == ["old_01.csv", "old_02.csv"]
        assert (found["reason"], found["production"]) == ("because", 1)
        assert main(["withdraw", "--undo", "old_02.csv", *words]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["returned"] == [{"name": "old_02.csv", "place": "used_gts/old_02.csv"}]
        with pytest.raises(SystemExit, match="2"):
            main(["withdraw", "--undo", "--delete", "old_01.csv", *words])

    def test_two_of_one_name_are_kept_apart(self, home: Path, settings_of: SettingsOf) -> None:
        """One used, one waiting; the name is read with its folder."""
        (home / "new_gts/new_01.csv").rename(home / "new_gts/old_01.csv")
        before = {(home / name / "old_01.csv").read_bytes() for name in ("used_gts", "new_gts")}
        found = take_out(settings_of(home), "used_gts/old_01.csv", "new_gts/old_01.csv")
        assert len({one["kept_as"] for one in found["withdrawn"]}) == 2
        assert {path.read_bytes() for path in (home / "withdrawn").iterdir()} == before

    def test_twice_is_refused(self, home: Path, settings_of: SettingsOf) -> None:
        """What is kept stays known as kept."""
        take_out(settings_of(home), "old_01.csv")
        with pytest.raises(PipelineError, match="already, withdrawn/old_01.csv is kept; nothing"):
            take_out(settings_of(home), "old_01.csv")
        assert undo(settings_of(home), ["old_01.csv"])["returned"][0]["place"]
        assert (home / "used_gts/old_01.csv").exists()

    @pytest.mark.slow
    def test_a_gone_file_takes_no_older_version_with_it(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Nobody asked to delete anything."""
        relabel(home / "used_gts/old_01.csv", home / "new_gts/again.csv")
        settings = settings_of(home)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        (home / "used_gts/old_01.csv").unlink()
        found = take_out(settings, "old_01.csv")
        assert found["withdrawn"][0]["learnt_by"] == [1, 2]
        assert len([*(home / "used_gts/replaced").iterdir()]) == 1
        assert status(settings, None)["problems"] == []


class TestRefusedAtIntake:
    """A withdrawn recording does not come back by accident."""

    @both_modules_in_time
    @pytest.mark.parametrize("delete", [False, True], ids=["kept", "deleted"])
    def test_every_form_of_it_and_the_advice_works(
        self, home: Path, settings_of: SettingsOf, domain: Domain, *, delete: bool
    ) -> None:
        """Its bytes, a re-saved copy, other labels; then undone with the words of the reason."""
        place = home / "used_gts/old_01.csv"
        content = place.read_bytes()
        settings = settings_of(home, min_new_files=1, threshold=1000)
        take_out(settings, "old_01.csv", delete=delete, reason="no consent")
        (home / "new_gts/bytes.csv").write_bytes(content)
        save_again(home / "new_gts/bytes.csv", home / "new_gts/copy.csv")
        relabel(home / "new_gts/bytes.csv", home / "new_gts/labels.csv")
        assert len(run_orchestrator(settings).recordings) == BATCH
        refused = {one.name: one for one in rejected_files(settings)}
        assert sorted(refused) == ["bytes.csv", "copy.csv", "labels.csv"]
        for one in refused.values():
            assert re.match(
                r"was withdrawn as old_01\.csv on 20\d\d-\d\d-\d\d \(no consent\)", one.what
            )
        (advice,) = {one.remedy for one in refused.values()}
        command = advice.partition("withdraw ")
        words = shlex.split("".join(command[1:]))
        assert words == ["withdraw", "--undo", "old_01.csv"]
        flags = flags_of({**domain.settings, "home": home})
        assert main([*words, *flags]) == 0
        if delete:
            assert not place.exists()
            assert main(["requeue", "copy.csv", *flags]) == 0
            (note,) = run_orchestrator(settings).notes
            assert note.startswith("restored: copy.csv is used_gts/old_01.csv in other bytes")
        assert place.is_file()
        assert status(settings, None)["problems"] == []

    def test_a_correction_of_it_that_was_parked(self, home: Path, settings_of: SettingsOf) -> None:
        """`correct` is no way around a withdrawal."""
        relabel(home / "used_gts/old_01.csv", home / "new_gts/turned.csv", share=0.5)
        run_orchestrator(settings_of(home, threshold=1000))
        take_out(settings_of(home), "old_01.csv")
        assert main(["correct", "turned.csv", "--home", str(home)]) == 1
        assert not (home / "used_gts/old_01.csv").exists()

    @pytest.mark.slow
    def test_a_rollback_archives_none_of_it(self, home: Path, settings_of: SettingsOf) -> None:
        """Nor a content that was corrected since, although the version learnt both."""
        settings = settings_of(home)
        contents = [(home / f"used_gts/old_0{n}.csv").read_bytes() for n in (1, 2)]
        relabel(home / "used_gts/old_02.csv", home / "new_gts/again.csv")
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        take_out(settings, "old_01.csv")
        for number, content in enumerate(contents, 1):
            (home / f"new_gts/back_{number}.csv").write_bytes(content)
        assert main(["rollback", "--home", str(home)]) == 0
        assert registry_of(settings).production.number() == 1
        assert len([*(home / "new_gts").glob("back_*.csv")]) == 2
        used = {path.read_bytes() for path in (home / "used_gts").glob("*.csv")}
        assert used.isdisjoint(contents)


class TestDelete:
    """`withdraw NAME --delete`."""

    @both_modules_in_time
    @pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
    def test_nothing_but_digests_and_a_sketch_is_left(
        self, home: Path, settings_of: SettingsOf, *, at_once: bool
    ) -> None:
        """The file, what it was before it was corrected, and all that was read of both."""
        settings = settings_of(home)
        place = home / "used_gts/old_01.csv"
        relabel(place, home / "new_gts/again.csv")
        run_orchestrator(settings_of(home, threshold=1000))
        hashes = {sha256(path) for path in [place, *(home / "used_gts/replaced").iterdir()]}
        assert len(hashes) == 2
        cache = home / CACHE_FOLDER
        cache.parent.mkdir(mode=0o700)
        for one in (*hashes, "0" * 64):
            KeptTables(cache, "maker", 10).put("rows", one, pd.read_csv(place))
        assert {path.name[:64] for path in cache.iterdir()} == {*hashes, "0" * 64}
        if not at_once:
            take_out(settings, "old_01.csv", reason="no consent")
        # Also where nothing is kept any more, but was.
        (one,) = take_out(settings_of(home, cache_mb=0), "old_01.csv", delete=True)["withdrawn"]
        assert one["kept_as"] == ""
        left = [path for path in home.rglob("*.csv") if sha256(path) in hashes]
        assert left == []
        assert {path.name[:64] for path in cache.iterdir()} == {"0" * 64}
        assert status(settings, None)["training_data"] == [
            "production learnt old_01.csv, withdrawn since"
        ]
        (entry,) = Journal(home).read().withdrawn().values()
        assert entry.reason == ("" if at_once else "no consent")

    @both_modules_in_time
    def test_its_sketch_is_enough_if_the_home_loses_what_it_knows(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """The journal alone recognises a copy that was saved again."""
        settings = settings_of(home, min_new_files=1, threshold=1000)
        copy = save_again(home / "used_gts/old_01.csv", home / "copy.csv")
        take_out(settings, "old_01.csv", delete=True)
        (home / ".pipeline_recordings").unlink()
        copy.rename(home / "new_gts/copy.csv")
        run_orchestrator(settings)
        (refused,) = rejected_files(settings)
        assert refused.what.startswith("was withdrawn as old_01.csv on ")


class TestUndo:
    """`withdraw --undo NAME`."""

    @both_modules_in_time
    @pytest.mark.parametrize("name", ["used_gts/old_01.csv", "new_gts/new_01.csv"])
    def test_the_file_returns_to_where_it_lay(
        self, home: Path, settings_of: SettingsOf, name: str
    ) -> None:
        """And counts as before."""
        content = (home / name).read_bytes()
        settings = settings_of(home, threshold=1000)
        take_out(settings, name)
        found = undo(settings, [Path(name).name])
        assert as_lines(found) == [f"withdrawal undone: {Path(name).name}: it is {name} again"]
        assert (home / name).read_bytes() == content
        assert len(run_orchestrator(settings).recordings) == BATCH
        state = status(settings, None)
        assert (state["training_data"], state["problems"]) == ([], [])

    def test_a_taken_name(self, home: Path, settings_of: SettingsOf) -> None:
        """The place that is said is the one where it is."""
        take_out(settings_of(home), "new_01.csv")
        (home / "new_gts/new_02.csv").rename(home / "new_gts/new_01.csv")
        (one,) = undo(settings_of(home), ["new_01.csv"])["returned"]
        assert one["place"] == "new_gts/new_01-1.csv"
        assert (home / one["place"]).is_file()

    @both_modules_in_time
    def test_one_of_which_the_journal_is_lost(self, home: Path, settings_of: SettingsOf) -> None:
        """What lies in withdrawn/ is withdrawn: explained, refused, and can be taken back."""
        settings = settings_of(home, threshold=1000)
        take_out(settings, "old_01.csv")
        (home / ".pipeline_journal").unlink()
        save_again(home / "withdrawn/old_01.csv", home / "new_gts/copy.csv")
        assert len(run_orchestrator(settings).recordings) == BATCH
        assert status(settings, None)["training_data"] == [
            "production learnt old_01.csv, withdrawn since"
        ]
        assert [one.name for one in rejected_files(settings)] == ["copy.csv"]
        (one,) = undo(settings, ["old_01.csv"])["returned"]
        assert one["place"] == "used_gts/old_01.csv"
        state = status(settings, None)
        assert (state["training_data"], state["problems"]) == ([], [])

    def test_a_deleted_one(self, home: Path, settings_of: SettingsOf) -> None:
        """Its file must be given again."""
        content = (home / "used_gts/old_01.csv").read_bytes()
        settings = settings_of(home, min_new_files=1, threshold=1000)
        take_out(settings, "old_01.csv", delete=True)
        assert as_lines(undo(settings, ["old_01.csv"])) == [
            "withdrawal undone: old_01.csv: put its file into new_gts/"
        ]
        (home / "new_gts/given.csv").write_bytes(content)
        run_orchestrator(settings)
        assert (home / "used_gts/given.csv").read_bytes() == content


class TestWithoutIt:
    """The next version is trained without a withdrawn recording."""

    @both_modules_in_time
    def test_run_retrain_trains_and_judges_although_production_is_healthy(
        self, home: Path, settings_of: SettingsOf, domain: Domain
    ) -> None:
        """What `withdraw` advises; with fewer files than the trigger asks for."""
        settings = settings_of(home, threshold=1000, min_new_files=BATCH + 10)
        content = sha256(home / "used_gts/old_01.csv")
        lines = as_lines(take_out(settings, "old_01.csv"))
        command = lines[-1].partition("python pipeline_orchestrator.py ")[2]
        assert command == "run --retrain"
        assert run_orchestrator(settings).outcome is Outcome.WAITING
        result = run_orchestrator(settings, retrain=True)
        assert result.outcome is Outcome.PROMOTED
        assert content not in manifest_of(settings, 2)
        assert len(manifest_of(settings, 2)) == OLD_SEASON_FILES + BATCH - 1
        assert status(settings, None)["training_data"] == []

    def test_with_few_files_or_none(self, home: Path, settings_of: SettingsOf) -> None:
        """One file is judged, and promotes nothing; without any there is nothing to judge."""
        settings = settings_of(home)
        for number in range(2, BATCH + 1):
            (home / f"new_gts/new_0{number}.csv").unlink()
        take_out(settings, "old_01.csv")
        result = run_orchestrator(settings, retrain=True)
        assert result.outcome is Outcome.NOT_PROMOTED
        assert "TOO_FEW_RECORDINGS" in result.message
        (home / "new_gts/new_01.csv").unlink()
        assert run_orchestrator(settings, retrain=True).outcome is Outcome.WAITING
        assert registry_of(settings).production.number() == 1


class TestWhoLearntIt:
    """Withdrawn is told from damaged."""

    def test_lineage(self, home: Path, settings_of: SettingsOf) -> None:
        """When, by whom and why, also if nothing is left of it."""
        settings = settings_of(home)
        take_out(settings, "old_01.csv", reason="no consent")
        take_out(settings, "old_02.csv", delete=True)
        kept, deleted = (lineage(settings, name) for name in ("old_01.csv", "old_02.csv"))
        assert kept["file"] == str(home / "withdrawn/old_01.csv")
        assert [one["version"] for one in (*kept["versions"], *deleted["versions"])] == [1, 1]
        assert re.search(r": withdrawn by .+: no consent$", kept["changes"][0])
        assert re.search(r": withdrawn and deleted by [^:]+$", deleted["changes"][0])
        undo(settings, ["old_01.csv"])
        back = lineage(settings, "old_01.csv")
        words = [one.partition(": ")[2].partition(" by ")[0] for one in back["changes"]]
        assert words == ["withdrawn", "withdrawal undone"]
        assert back["changes"][1] in lineage_lines(back)

    def test_reproduce(self, home: Path, settings_of: SettingsOf) -> None:
        """A kept one is found; of the others it is said what became of them."""
        settings = settings_of(home)
        names = [f"old_0{number}.csv" for number in (1, 2, 3, 4, 5)]
        relabel(home / "used_gts/old_03.csv", home / "new_gts/again.csv")
        run_orchestrator(settings_of(home, threshold=1000))
        take_out(settings, names[0])
        take_out(settings, names[1], names[2], delete=True)
        (home / "used_gts/old_04.csv").unlink()
        take_out(settings, names[3])
        (home / "used_gts/old_05.csv").unlink()
        with pytest.raises(PipelineError, match="4 of its 6 recordings") as caught:
            reproduce(settings, 1)
        text = str(caught.value)
        assert "old_01.csv" not in text
        for name in names[1:3]:
            assert re.search(rf"'{name}' was withdrawn on 20[-\d]+ and deleted", text)
        assert re.search(r"'old_04.csv' was withdrawn on 20[-\d]+ and is gone", text)
        assert "'old_05.csv' is missing" in text


class TestInterrupted:
    """A power cut between what is written and what is moved."""

    @pytest.mark.parametrize("delete", [False, True], ids=["kept", "deleted"])
    def test_the_next_start_ends_it(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch, *, delete: bool
    ) -> None:
        """In both directions."""

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        settings = settings_of(home, min_new_files=100)
        for command, function, is_there in (
            (lambda: take_out(settings, "old_01.csv", delete=delete), "finish_withdrawal", True),
            (lambda: undo(settings, ["old_01.csv"]), "finish_return", False),
        ):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(ground_truth, function, die)
                command()
            assert (home / "used_gts/old_01.csv").exists() is is_there
            assert status(settings, None)["unfinished"]["command"] == "withdraw"
            run_orchestrator(settings)
            assert status(settings, None)["unfinished"] is None
            assert (home / "used_gts/old_01.csv").exists() is (not is_there and not delete)
