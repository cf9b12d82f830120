"""Corrected recordings take the old ones' place on a person's word."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, both_modules_in_time
from relabel import relabel, save_again, sha256
from test_pipeline_orchestrator import contents, counts, snapshot

from pipeline_orchestrator import main, run_orchestrator
from retraining import ground_truth
from retraining.commands.correct import correct
from retraining.commands.lineage import lineage
from retraining.commands.status import status
from retraining.errors import PipelineError
from retraining.ground_truth import REASON_SUFFIX, rejected_files
from retraining.journal import Journal, Replaced

SettingsOf = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("fast_training")


@pytest.fixture
def parked(
    history_of: Callable[..., tuple[Path, Any]],
    domain: Any,
    settings_of: SettingsOf,
    tmp_path: Path,
) -> Path:
    """Give a home with a correction in rejected/ that changes half of the labels."""

    def park(home: Path) -> None:
        relabel(home / "used_gts/old_01.csv", home / "new_gts/again.csv", share=0.5)
        run_orchestrator(settings_of(home, threshold=1000))
        assert [one.name for one in rejected_files(settings_of(home))] == ["again.csv"]

    return history_of(domain, "parked", park, tmp_path / "home")[0]


class TestCorrect:
    """`correct NAME...`."""

    @both_modules_in_time
    def test_a_parked_one(self, parked: Path, settings_of: SettingsOf) -> None:
        """However many labels it changes; neither it nor its reason stays in rejected/."""
        settings = settings_of(parked, threshold=1000)
        place, rejected = parked / "used_gts/old_01.csv", parked / "new_gts/rejected"
        old, new = place.read_bytes(), (rejected / "again.csv").read_bytes()
        runs = counts(settings)
        (line,) = correct(settings, ["again.csv"])
        assert line.startswith("corrected: again.csv takes the place of used_gts/old_01.csv, 5")
        assert place.read_bytes() == new
        (kept,) = (parked / "used_gts/replaced").iterdir()
        assert kept.read_bytes() == old
        assert kept.name in line
        assert list(rejected.iterdir()) == []
        assert counts(settings) == runs
        (entry,) = Journal(parked).read().all(Replaced)
        assert entry.by_person
        state = status(settings, None)
        assert state["training_data"] == ["production learnt an older version of old_01.csv"]
        assert (state["problems"], state["parked"], state["unfinished"]) == ([], [], None)
        assert lineage(settings, "old_01.csv")["changes"][0].endswith(line)
        assert "again.csv" not in [one.name for one in run_orchestrator(settings).recordings]

    @both_modules_in_time
    def test_a_file_of_new_gts(self, home: Path, settings_of: SettingsOf) -> None:
        """Without waiting for the night; the others stay where they are."""
        new = relabel(home / "used_gts/old_01.csv", home / "new_gts/old_01.csv", share=1)
        relabel(home / "used_gts/old_02.csv", home / "new_gts/old_02.csv")
        content = sha256(new)
        correct(settings_of(home), ["old_01.csv"])
        assert sha256(home / "used_gts/old_01.csv") == content
        waiting = sorted(path.name for path in (home / "new_gts").glob("old*"))
        assert waiting == ["old_02.csv"]

    @both_modules_in_time
    @pytest.mark.parametrize("is_parked", [False, True], ids=["new", "parked"])
    def test_a_waiting_recording(
        self, home: Path, settings_of: SettingsOf, *, is_parked: bool
    ) -> None:
        """It keeps its name and its place in the order of arrival, and counts."""
        settings = settings_of(home, threshold=1000)
        run_orchestrator(settings)
        waiting = home / "new_gts/new_01.csv"
        content = sha256(relabel(waiting, home / "new_gts/again.csv", share=0.5))
        if is_parked:
            run_orchestrator(settings)
            assert status(settings, None)["parked"] == ["again.csv"]
        (line,) = correct(settings, ["again.csv"])
        assert line.startswith("corrected: again.csv takes the place of new_gts/new_01.csv, ")
        assert sha256(waiting) == content
        assert status(settings, None)["rejected"] == []
        result = run_orchestrator(settings, force=True)
        assert [one.name for one in result.recordings] == [
            f"new_0{number}.csv" for number in range(1, BATCH + 1)
        ]

    @pytest.mark.slow
    def test_four_corrections_of_one_night(self, home: Path, settings_of: SettingsOf) -> None:
        """All are parked; one command, read from `status`, makes them all."""
        for number in range(1, 5):
            source = home / f"used_gts/old_0{number}.csv"
            relabel(source, home / f"new_gts/c{number}.csv")
        before = contents(home / "used_gts")
        settings = settings_of(home, threshold=1000)
        run_orchestrator(settings)
        assert contents(home / "used_gts") == before
        assert status(settings, None)["parked"] == ["c1.csv", "c2.csv", "c3.csv", "c4.csv"]
        assert len(correct(settings, status(settings, None)["parked"])) == 4
        assert len([*(home / "used_gts/replaced").iterdir()]) == 4
        assert status(settings, None)["parked"] == []

    def test_a_correction_is_taken_back_by_another_one(
        self, parked: Path, settings_of: SettingsOf
    ) -> None:
        """Old labels are parked without a person; with one, production's are the newest again."""
        settings = settings_of(parked, threshold=1000, min_new_files=1)
        old = (parked / "used_gts/old_01.csv").read_bytes()
        wrong = (parked / "new_gts/rejected/again.csv").read_bytes()
        correct(settings, ["again.csv"])
        (parked / "new_gts/right.csv").write_bytes(old)
        run_orchestrator(settings)
        assert (parked / "used_gts/old_01.csv").read_bytes() == wrong
        assert status(settings, None)["parked"] == ["right.csv"]
        correct(settings, ["right.csv"])
        assert (parked / "used_gts/old_01.csv").read_bytes() == old
        state = status(settings, None)
        assert (state["training_data"], state["problems"]) == ([], [])
        # What was taken back does not begin again after a crash.
        (parked / "new_gts/rejected/again.csv").write_bytes(wrong)
        (parked / ".pipeline_state.json").write_text('{"cycle_id": "dead"}')
        run_orchestrator(settings_of(parked, min_new_files=100))
        assert (parked / "used_gts/old_01.csv").read_bytes() == old


class TestRefused:
    """Nothing is changed, and one line says why."""

    def test_two_for_one_place(self, home: Path, settings_of: SettingsOf) -> None:
        """The person must say which is right."""
        place = home / "used_gts/old_01.csv"
        relabel(place, home / "new_gts/one.csv", first=0)
        relabel(place, home / "new_gts/two.csv", first=3)
        before = contents(home / "used_gts"), contents(home / "new_gts")
        with pytest.raises(
            PipelineError, match=r"(one|two)\.csv take the place of used_gts/old_01\.csv both"
        ):
            correct(settings_of(home), ["one.csv", "two.csv"])
        assert (contents(home / "used_gts"), contents(home / "new_gts")) == before
        assert Journal(home).read().all(Replaced) == []

    @pytest.mark.parametrize(
        "name", ["nowhere.csv", "../used_gts/old_02.csv", "rejected/again.csv"]
    )
    def test_an_unknown_name(
        self, parked: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Also one outside the two folders."""
        before = snapshot(parked)
        assert main(["correct", "again.csv", name, "--home", str(parked)]) == 1
        assert f"there is no {name!r} in new_gts/rejected/ or new_gts/" in capsys.readouterr().err
        changed = {path for path, is_now in snapshot(parked).items() if before.get(path) != is_now}
        assert changed <= {".pipeline.lock"}

    @pytest.mark.parametrize("what", ["a duplicate", "a bad file"])
    def test_what_corrects_nothing(self, home: Path, settings_of: SettingsOf, what: str) -> None:
        """Because it says the same, or cannot be read."""
        if what == "a duplicate":
            save_again(home / "used_gts/old_01.csv", home / "new_gts/x.csv")
        else:
            (home / "new_gts/x.csv").write_text("a,b\n1,2\n")
        with pytest.raises(PipelineError, match=r"^x\.csv corrects nothing: it .*; nothing was"):
            correct(settings_of(home), ["x.csv"])
        assert (home / "new_gts/x.csv").exists()

    def test_a_new_recording_is_said_to_be_one(self, home: Path, settings_of: SettingsOf) -> None:
        """It stays where it waits."""
        (line,) = correct(settings_of(home), ["new_01.csv"])
        assert line == "new_01.csv corrects nothing: it is new, and in new_gts/"
        assert (home / "new_gts/new_01.csv").exists()


class TestInterrupted:
    """A power cut between the journal and the move, or right after it."""

    @pytest.mark.parametrize("at", ["begin", "end"])
    def test_the_next_start_ends_it(
        self, parked: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch, at: str
    ) -> None:
        """No reason is left without its file."""
        new = (parked / "new_gts/rejected/again.csv").read_bytes()

        def die(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            if at == "begin":
                patch.setattr(ground_truth, "finish_replacement", die)
            else:
                patch.setattr(Path, "unlink", die_at_reasons(die, Path.unlink))
            correct(settings_of(parked), ["again.csv"])
        run_orchestrator(settings_of(parked, min_new_files=100))
        assert (parked / "used_gts/old_01.csv").read_bytes() == new
        assert list((parked / "new_gts/rejected").iterdir()) == []
        (kept,) = (parked / "used_gts/replaced").iterdir()
        assert re.fullmatch(r"old_01\.[-\d]+\.csv", kept.name)


def die_at_reasons(die: Callable[[], None], unlink: Any) -> Any:
    """Return an `unlink` that dies before it removes the reason beside a rejected file."""

    def remove(path: Path, *values: Any, **named: Any) -> None:
        if path.name.endswith(REASON_SUFFIX):
            die()
        unlink(path, *values, **named)

    return remove
