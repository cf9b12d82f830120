"""`doubts`: labels that models contradict which never saw them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Domain, both_modules_in_time

import register_first_model
from pipeline_orchestrator import main
from retraining.commands.doubts import doubts
from retraining.errors import PipelineError
from retraining.settings import Settings

pytestmark = pytest.mark.usefixtures("fast_training")
FLIPPED = 4
HOSTILE = "old_0\n\x1b[31m=cmd().csv"


def flip(path: Path, domain: Domain) -> dict[str, Any]:
    """Give the surest thing of a recording another label; return what tells which one."""
    rows = pd.read_csv(path)
    if domain.module_name == "grain_quality":
        place = int(rows["brightness"].to_numpy().argmax())  # bright ones are sound
        rows.loc[place, "quality"] = "mouldy"
        rows.to_csv(path, index=False)
        return {"file": path.name, "grain": place + 1}
    lengths = rows[rows["ground_truth"]].groupby("object_id").size()
    chosen = lengths.sort_values().index[-1]
    rows.loc[rows["object_id"] == chosen, "ground_truth"] = False
    rows.to_csv(path, index=False)
    return {"file": path.name, "object_id": int(chosen)}


@pytest.fixture
def flipped(
    domain: Domain,
    history_of: Callable[..., tuple[Path, Any]],
    settings_of: Callable[..., Settings],
    tmp_path: Path,
) -> tuple[Settings, list[dict[str, Any]]]:
    """Give a home that was trained with some wrong labels, and which ones."""

    def happen(home: Path) -> list[dict[str, Any]]:
        others = sorted((home / "used_gts").glob("*.csv"))[1:]
        others[0] = others[0].rename(others[0].with_name(HOSTILE))
        wrong = [flip(path, domain) for path in others[:FLIPPED]]
        register_first_model.register_first_model(settings_of(home), force=True, train=True)
        return wrong

    home, wrong = history_of(domain, "flipped labels", happen, tmp_path / "home")
    return settings_of(home), wrong


class TestDoubts:
    """Which labels to look at again."""

    @both_modules_in_time
    def test_wrong_labels_come_first(self, flipped: tuple[Settings, list[dict[str, Any]]]) -> None:
        """Most of them among twice as many, each with what tells which one it is."""
        settings, wrong = flipped
        found = doubts(settings, 2 * FLIPPED)
        listed = [{name: one.get(name) for name in wrong[0]} for one in found["labels"]]
        assert sum(one in listed for one in wrong) >= FLIPPED - 1
        sure = [one["doubt"] for one in found["labels"]]
        assert sure == sorted(sure, reverse=True)
        assert (len(found["labels"]), found["gone"]) == (min(2 * FLIPPED, len(sure)), 0)

    def test_a_person_reads_a_table(
        self,
        flipped: tuple[Settings, list[dict[str, Any]]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Names from outside are harmless; what a correction would change stands there."""
        settings, _ = flipped
        assert main(["doubts", "--count", "3", "--home", str(settings.home)]) == 0
        text = capsys.readouterr().out
        assert "\x1b" not in text
        lines = text.splitlines()
        head = lines[1].split("  ")
        assert [one.strip() for one in head if one.strip()] == [
            *("file", "object id", "first frame", "last frame", "label", "model"),
            *("count change", "sure"),
        ]
        assert len(lines) in (6, 7)
        assert "nothing is changed or left out by itself" in lines[-1]
        assert main(["doubts", "--json", "--home", str(settings.home)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["labels"][0]["count_change"] in (1, -1)

    def test_what_was_corrected_is_gone(
        self, flipped: tuple[Settings, list[dict[str, Any]]]
    ) -> None:
        """Until the next training, which tells anew."""
        settings, wrong = flipped
        before = doubts(settings, 1000)
        n_of_file = sum(one["file"] == wrong[1]["file"] for one in before["labels"])
        with (settings.used_gts / wrong[1]["file"]).open("a") as stream:
            stream.write("\n")
        after = doubts(settings, 1000)
        assert n_of_file > 0
        assert after["gone"] == n_of_file
        assert all(one["file"] != wrong[1]["file"] for one in after["labels"])

    def test_a_damaged_list_is_not_believed(
        self, flipped: tuple[Settings, list[dict[str, Any]]]
    ) -> None:
        """Whoever may write an artifact does not tell people which labels to change."""
        settings, _ = flipped
        (path,) = settings.artifacts.rglob("before_labels.json")
        path.write_text(path.read_text().replace("false count", "stem"))
        with pytest.raises(PipelineError, match="no version of this home says which labels"):
            doubts(settings, 5)

    def test_without_a_training_the_way_to_one_is_told(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A pickle of elsewhere tells nothing."""
        assert main(["doubts", "--home", str(home)]) == 1
        assert "the next training tells" in capsys.readouterr().err

    @pytest.mark.parametrize("count", ["0", "-1", "x"])
    def test_a_count_is_a_number_from_one(self, home: Path, count: str) -> None:
        """Anything else is a usage error."""
        with pytest.raises(SystemExit, match="2"):
            main(["doubts", f"--count={count}", "--home", str(home)])
