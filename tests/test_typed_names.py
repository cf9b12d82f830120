"""Names with an umlaut that people type: two forms that look the same."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from relabel import relabel

from pipeline_orchestrator import main
from retraining import ground_truth
from retraining.commands.correct import correct
from retraining.commands.lineage import lineage
from retraining.commands.withdraw import undo, withdraw
from retraining.typed_names import name_meant, path_meant

SettingsOf = Callable[..., Any]
COMPOSED = unicodedata.normalize("NFC", "größe.csv")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
either = pytest.mark.parametrize(
    ("typed", "lies"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)], ids=["NFD", "NFC"]
)
"""The form that lies on the disk is the other one."""


class TestTwoForms:
    """A keyboard makes one form, a disk or an uploader the other."""

    @either
    def test_withdraw(self, home: Path, settings_of: SettingsOf, typed: str, lies: str) -> None:
        """A file, and its withdrawal by name; nothing is written under the other form."""
        settings = settings_of(home)
        (home / "used_gts/old_01.csv").rename(home / "used_gts" / lies)
        (one,) = withdraw(settings, [f"used_gts/{typed}"], delete=False, reason="")["withdrawn"]
        assert (one["name"], one["kept_as"]) == (lies, f"withdrawn/{lies}")
        assert lineage(settings, typed)["file"] == str(home / "withdrawn" / lies)
        assert undo(settings, [typed]) == {
            "returned": [{"name": lies, "place": f"used_gts/{lies}"}]
        }
        withdraw(settings, [typed], delete=True, reason="")
        assert lineage(settings, typed)["file"] == str(home / "used_gts" / lies)

    @either
    def test_correct(self, home: Path, settings_of: SettingsOf, typed: str, lies: str) -> None:
        """Both forms of one name are one file."""
        relabel(home / "used_gts/old_01.csv", home / "new_gts" / lies, share=0.5)
        (line,) = correct(settings_of(home), [typed, lies])
        assert line.startswith(f"corrected: {lies} takes the place of used_gts/old_01.csv")

    @either
    def test_requeue(self, home: Path, settings_of: SettingsOf, typed: str, lies: str) -> None:
        """What is said is the name that lies there."""
        settings = settings_of(home)
        (home / "new_gts" / lies).write_text("no table")
        ground_truth.reject(settings, [ground_truth.Refusal(lies, "is no table", "mend it")])
        assert ground_truth.requeue(settings, [typed]) == [lies]

    @either
    def test_predict(
        self, home: Path, capsys: pytest.CaptureFixture[str], typed: str, lies: str
    ) -> None:
        """In a folder whose name has two forms, too."""
        folder = home / Path(lies).stem
        folder.mkdir()
        shutil.copy(home / "new_gts/new_01.csv", folder / lies)
        assert main(["predict", "--home", str(home), str(home / Path(typed).stem / typed)]) == 0
        assert len(capsys.readouterr().out.splitlines()) > 1

    def test_the_exact_one_wins(self, home: Path, settings_of: SettingsOf) -> None:
        """Wherever the other one lies: in the same folder, or in one that is looked at before."""
        settings, used, new = settings_of(home), home / "used_gts", home / "new_gts"
        for form, name in ((COMPOSED, "old_01.csv"), (DECOMPOSED, "old_02.csv")):
            (used / name).rename(used / form)
        assert lineage(settings, DECOMPOSED)["file"] == str(used / DECOMPOSED)
        (used / COMPOSED).rename(new / COMPOSED)
        assert lineage(settings, COMPOSED)["file"] == str(new / COMPOSED)
        (one,) = withdraw(settings, [COMPOSED], delete=False, reason="")["withdrawn"]
        assert one["name"] == COMPOSED
        assert (used / DECOMPOSED).exists()

    def test_neither_is_an_unknown_name(self, tmp_path: Path) -> None:
        """Said as it was typed; a folder that is missing or no folder is no failure."""
        (tmp_path / "a").touch()
        folders = [tmp_path, tmp_path / "missing", tmp_path / "a"]
        assert name_meant(COMPOSED, folders, ["b"]) == COMPOSED
        assert path_meant(folders[1] / COMPOSED) == folders[1] / COMPOSED
