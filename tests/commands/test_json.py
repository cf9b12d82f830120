"""What `--json` prints is what docs/json.md says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, FAST_WORDS, ROOT, write_mislabelled
from sample_gts import write_recordings

from pipeline_orchestrator import main
from retraining.commands.transfer import Imported
from retraining.journal import Journal
from retraining.outcome import Outcome
from retraining.settings import Settings

DOCUMENT = (ROOT / "docs" / "json.md").read_text()
pytestmark = pytest.mark.usefixtures("fast_training")


def documented(command: str) -> dict[str, str]:
    """Return field -> second column of a command's table."""
    section = DOCUMENT.split(f"## {command}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", section, re.MULTILINE)
    return {name: text for names, text in rows for name in re.findall(r"`(\w+)`", names)}


def printed(capsys: pytest.CaptureFixture[str], home: Path, *words: str) -> dict[str, Any]:
    """Run a command with --json and return its document."""
    command = words[0] if words and words[0] in ("status", "history") else "run"
    main([*words, "--json", *(FAST_WORDS if command == "run" else ()), "--home", str(home)])
    document = json.loads(capsys.readouterr().out)
    assert document.pop("schema_version") == 2
    return dict(document)


def fields_of(outcome: str) -> set[str]:
    """Return the fields that docs/json.md promises for an outcome."""
    promised = set()
    for name, outcomes in documented("run").items():
        everywhere = outcomes == "all" or (outcomes == "all but waiting" and outcome != "waiting")
        if everywhere or outcome in outcomes.split(", "):
            promised.add(name)
    return promised


@pytest.mark.slow
def test_every_outcome_prints_what_is_documented(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From waiting to a lost probation, in one home's life; then status and history."""
    new = home / "new_gts"
    seen = {}

    def run(*words: str) -> dict[str, Any]:
        document = printed(capsys, home, *words)
        assert set(document) == fields_of(document["outcome"])
        seen[document["outcome"]] = document
        return document

    run("--threshold", "1000")
    run("--threshold", "1000")
    run("--min-improvement", "90")
    for path in new.glob("*.csv"):
        path.unlink()
    run()
    write_mislabelled(new, seed=2)
    promoted = run()
    assert {"name", "true_count", "champion_count"} < set(promoted["by_recording"][0])
    write_recordings(new, BATCH, "old", seed=3, prefix="right")
    run()
    assert set(seen) == {one.value for one in Outcome} - {Outcome.FAILED.value}
    verdict = seen["promoted"]["verdict"]
    for name in (*verdict, *verdict["criteria"][0], *promoted["by_recording"][0]):
        assert f"`{name}`" in DOCUMENT
    status = printed(capsys, home, "status")
    assert set(status) == set(documented("status"))
    for name in (*status["cycles"][0], *status["last_run"]):
        assert f"`{name}`" in DOCUMENT
    history = printed(capsys, home, "history")
    at = printed(capsys, home, "history", "--at", history["changes"][0]["at"])
    assert {*history, *at} == set(documented("history"))
    for name in history["changes"][0]:
        assert f"`{name}`" in DOCUMENT


def test_lineage_and_reproduce_print_what_is_documented(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every field of both commands."""
    main(["lineage", "old_01.csv", "--json", "--home", str(home)])
    document = json.loads(capsys.readouterr().out)
    assert document.pop("schema_version") == 2
    assert set(document) == set(documented("lineage"))
    assert set(documented("reproduce")) == {
        *("version", "identical", "recordings", "predictions", "probabilities"),
        *("largest_difference", "different", "n_folds", "random_state", "recorded", "packages"),
    }


def test_history_tells_where_a_home_and_its_model_came_from(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every field of what has no version; people read the same."""
    archive = str(tmp_path / "stems.tar")
    main(["backup", archive, "--home", str(home)])
    main(["restore", archive, "--copy", "--home", str(tmp_path / "new")])
    settings = Settings(home=tmp_path / "new")
    name = settings.model_name
    Journal(settings.home).append(Imported("0" * 64, "a home", name, 3, "meant", "ann", "then"))
    Journal(settings.home).append(Imported("0" * 64, "a home", "Oaks", 3, "", "ann", "then"))
    capsys.readouterr()
    found = printed(capsys, settings.home, "history")
    assert [found["relocations"][0][key] for key in ("what", "from", "to", "backup")] == [
        *("restored", str(home), str(settings.home), "stems.tar")
    ]
    assert found["imports"] == [{"at": "then", "versions": 3, "who": "ann", "reason": "meant"}]
    for name in (*found["relocations"][0], *found["imports"][0]):
        assert f"`{name}`" in DOCUMENT
    main(["history", "--home", str(settings.home)])
    lines = capsys.readouterr().out
    assert f"restored: stems.tar, of {home} -> {settings.home}" in lines
    assert "then  imported: 3 versions  ann  meant" in lines


def test_withdraw_prints_what_is_documented(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In both directions."""
    words = ["old_01.csv", "--json", "--home", str(home)]
    main(["withdraw", *words])
    withdrawn = json.loads(capsys.readouterr().out)
    main(["withdraw", "--undo", *words])
    returned = json.loads(capsys.readouterr().out)
    assert withdrawn.pop("schema_version") == returned.pop("schema_version") == 2
    assert {*withdrawn, *returned} == set(documented("withdraw"))
    for name in (*withdrawn["withdrawn"][0], *returned["returned"][0]):
        assert f"`{name}`" in DOCUMENT
