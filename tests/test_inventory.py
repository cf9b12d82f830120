"""What `status` and the page say of used_gts/: what the journal explains, and what it does not."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import both_modules_in_time, flags_of
from relabel import relabel, save_again

from pipeline_orchestrator import main, run_orchestrator
from retraining.commands.withdraw import undo, withdraw
from retraining.files import hash_bytes
from retraining.inventory import Inventory, take_inventory
from retraining.journal import COPY, CORRECTION, Arrival, Journal, Replaced, Withdrawn
from retraining.registry.facts import Manifest
from retraining.settings import Settings

A, B, C = (hash_bytes(text) for text in (b"a", b"b", b"c"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return the settings of an empty home."""
    for name in ("new_gts", "used_gts"):
        (tmp_path / name).mkdir()
    return Settings(home=tmp_path)


def replaced(new: str, old: str, reason: str = CORRECTION, folder: str = "used_gts") -> Replaced:
    """Return what the journal says of a replacement."""
    return Replaced(new, old, "new_gts/x.csv", folder, "8.csv", "k", reason, 0.0, False, "2026")


def withdrawn(sha256: str, *earlier: str) -> Withdrawn:
    """Return what the journal says of a withdrawal."""
    return Withdrawn(sha256, "", [*earlier], "used_gts", "8.csv", "8.csv", "", "me", "2026")


def take(
    settings: Settings, used: dict[str, bytes], learnt: dict[str, str], *entries: Any
) -> Inventory:
    """Put files into used_gts/ and compare it with what production learnt: SHA-256 -> name."""
    for name, content in used.items():
        (settings.used_gts / name).write_bytes(content)
    journal = Journal(settings.home)
    if entries:
        journal.append(*entries)
    manifest = Manifest.of(
        {name: sha256 for sha256, name in learnt.items()}, dict.fromkeys(learnt.values(), 1)
    )
    return take_inventory(settings, manifest, journal.read())


class TestExplained:
    """Nobody has to look."""

    def test_the_same_files_are_worth_no_word(self, settings: Settings) -> None:
        """Whatever they are called now."""
        found = take(settings, {"renamed.csv": b"a"}, {A: "8.csv"})
        assert found == Inventory()
        assert found.lines == ()

    @pytest.mark.parametrize(
        ("entries", "content"),
        [
            ([replaced(B, A)], b"b"),
            ([replaced(B, A), replaced(C, B)], b"c"),
            ([replaced(B, A), replaced(A, B), replaced(C, A)], b"c"),
        ],
    )
    def test_a_correction(
        self, settings: Settings, entries: list[Replaced], content: bytes
    ) -> None:
        """Also of a correction, and after one that was taken back."""
        found = take(settings, {"8.csv": content}, {A: "8.csv"}, *entries)
        assert found == Inventory(("production learnt an older version of 8.csv",))

    def test_a_correction_that_was_taken_back(self, settings: Settings) -> None:
        """Then all is as it was."""
        found = take(settings, {"8.csv": b"a"}, {A: "8.csv"}, replaced(B, A), replaced(A, B))
        assert found == Inventory()

    def test_a_corrected_file_that_waits(self, settings: Settings) -> None:
        """A version that learnt a waiting file was named by hand, and the file was corrected."""
        (settings.new_gts / "8.csv").write_bytes(b"b")
        found = take(settings, {}, {A: "8.csv"}, replaced(B, A, folder="new_gts"))
        assert found == Inventory(("production learnt an older version of 8.csv",))

    def test_a_copy_in_other_bytes(self, settings: Settings) -> None:
        """It is no older version."""
        found = take(settings, {"8.csv": b"b"}, {A: "8.csv"}, replaced(B, A, COPY))
        assert found == Inventory(("production learnt 8.csv in other bytes",))

    @pytest.mark.parametrize(
        "entries",
        [[withdrawn(A)], [replaced(B, A), withdrawn(B)], [replaced(B, A), withdrawn(B, A)]],
    )
    def test_a_withdrawal(self, settings: Settings, entries: list[Any]) -> None:
        """Also of a recording that was corrected before."""
        found = take(settings, {}, {A: "8.csv"}, *entries)
        assert found == Inventory(("production learnt 8.csv, withdrawn since",))

    def test_what_waits_is_archived_by_the_next_cycle(self, settings: Settings) -> None:
        """After a promotion by hand."""
        (settings.new_gts / "8.csv").write_bytes(b"a")
        found = take(settings, {}, {A: "8.csv"})
        assert found == Inventory(
            ("production learnt 8.csv, still in new_gts/: the next cycle archives it",)
        )

    @pytest.mark.parametrize("entries", [[], [Arrival(B, "", "9.csv", "2026")]])
    def test_what_another_version_learnt(self, settings: Settings, entries: list[Any]) -> None:
        """It arrived through new_gts/, or before anybody noted arrivals."""
        found = take(settings, {"8.csv": b"a", "9.csv": b"b"}, {A: "8.csv"}, *entries)
        assert found.explained == (
            "production did not learn 9.csv, which another version learnt: the next retraining "
            "does",
        )
        assert found.unexplained == ()


class TestUnexplained:
    """Somebody must look, and is told what to do."""

    def test_lacking_files_come_with_the_words_of_a_command(self, settings: Settings) -> None:
        """The first five, as a shell reads them."""
        names = [f"file {number}.csv" for number in range(7)]
        learnt = {hash_bytes(name.encode()): name for name in names}
        (line,) = take(settings, {}, learnt).unexplained
        assert "used_gts/ lacks file 0.csv, file 1.csv, " in line
        assert "file 4.csv and 2 more, which production learnt" in line
        command = line.partition("python pipeline_orchestrator.py withdraw ")[2]
        assert shlex.split(command) == names[:5]

    def test_a_file_that_was_changed_is_neither_lacking_nor_added(self, settings: Settings) -> None:
        """One sentence."""
        arrived = Arrival(A, "", "8.csv", "2026")
        found = take(settings, {"8.csv": b"b"}, {A: "8.csv"}, arrived)
        (line,) = found.lines
        assert line.startswith("used_gts/ holds another 8.csv than production learnt: move it to ")

    def test_a_file_that_came_by_hand(self, settings: Settings) -> None:
        """Once arrivals are noted."""
        arrived = Arrival(A, "", "8.csv", "2026")
        found = take(settings, {"8.csv": b"a", "9.csv": b"b"}, {A: "8.csv"}, arrived)
        (line,) = found.unexplained
        assert line.startswith("used_gts/ holds 9.csv, which did not come through new_gts/")


@pytest.mark.usefixtures("fast_training")
class TestMending:
    """The advice is followed to the letter in a real home."""

    @pytest.fixture
    def noted(
        self,
        history_of: Callable[..., tuple[Path, Any]],
        domain: Any,
        settings_of: Callable[..., Any],
        tmp_path: Path,
    ) -> Path:
        """Give a home whose journal knows what arrived."""

        def note(home: Path) -> None:
            run_orchestrator(settings_of(home, threshold=1000))

        return history_of(domain, "noted", note, tmp_path / "home")[0]

    def said(self, home: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
        """Return the exit status of `status`, and the lines of it that are about used_gts/."""
        code = main(["status", "--home", str(home), *words])
        lines = [one for one in capsys.readouterr().out.splitlines() if "used_gts/" in one]
        assert code == (1 if lines else 0)
        return lines

    @both_modules_in_time
    @pytest.mark.parametrize("kind", ["lacking", "changed", "by hand", "corrected by hand"])
    def test_each_difference(
        self,
        noted: Path,
        kind: str,
        domain: Any,
        settings_of: Callable[..., Any],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Exit status 1 until it is mended, then 0."""
        words = flags_of(domain.settings)
        used, new = noted / "used_gts", noted / "new_gts"
        domain.write(noted, 1, "old", seed=9, prefix="strange")
        strange = noted / "strange_01.csv"
        assert self.said(noted, words, capsys) == []
        name = "old_01.csv"
        if kind == "lacking":
            (used / name).unlink()
        elif kind == "changed":
            (noted / "backup.csv").write_bytes((used / name).read_bytes())
            strange.replace(used / name)
        elif kind == "by hand":
            strange.rename(used / "strange_01.csv")
            name = "strange_01.csv"
        else:
            relabel(used / name, used / name)
        (line,) = self.said(noted, words, capsys)
        assert name in line
        if kind == "lacking":
            command = line.partition("python pipeline_orchestrator.py ")[2]
            assert main([*shlex.split(command), "--home", str(noted), *words]) == 0
        elif kind == "changed":
            (noted / "backup.csv").replace(used / name)
        else:
            (used / name).rename(new / name)
            # One file more than before, or one correction: both begin a cycle.
            run_orchestrator(settings_of(noted, threshold=1000))
            assert (new / name).exists() is (kind == "by hand")
        assert self.said(noted, words, capsys) == []

    def test_an_undone_withdrawal_is_no_difference(
        self, noted: Path, settings_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Of a deleted one the file must come back."""
        settings = settings_of(noted)
        copy = save_again(noted / "used_gts/old_02.csv", noted / "copy.csv")
        withdraw(settings, ["old_01.csv"], delete=False, reason="")
        withdraw(settings, ["old_02.csv"], delete=True, reason="")
        assert self.said(noted, [], capsys) == []
        undo(settings, ["old_01.csv", "old_02.csv"])
        (line,) = self.said(noted, [], capsys)
        assert line.startswith("used_gts/ lacks old_02.csv, which production learnt")
        copy.rename(noted / "new_gts/copy.csv")
        run_orchestrator(settings_of(noted, threshold=1000))
        assert self.said(noted, [], capsys) == []
