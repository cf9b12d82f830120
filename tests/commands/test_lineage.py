"""A recording names the versions that learnt it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from relabel import relabel

from pipeline_orchestrator import main, run_orchestrator
from retraining.commands.lineage import as_lines, lineage
from retraining.outcome import Outcome

pytestmark = pytest.mark.usefixtures("fast_training")


@pytest.mark.slow
def test_the_versions_of_a_recording(
    home: Path, settings_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Newest first, with their alias; an old recording was learnt by both."""
    run_orchestrator(settings_of(home))
    old = lineage(settings_of(home), "old_01.csv")
    assert [(one["version"], one["alias"]) for one in old["versions"]] == [
        (2, "production"),
        (1, "previous_production"),
    ]
    elsewhere = shutil.copyfile(home / "used_gts" / "new_01.csv", home / "renamed.csv")
    assert main(["lineage", str(elsewhere), "--home", str(home)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{elsewhere}: SHA-256 ")
    assert lines[1].startswith("version 2 of 20")
    assert lines[1].endswith(" learnt it as 'new_01.csv'; it is production")
    assert len(lines) == 2


def test_a_mended_recording(home: Path, settings_of: Callable[..., Any]) -> None:
    """What was learnt under its name was something else."""
    path = home / "used_gts" / "old_01.csv"
    path.write_bytes(path.read_bytes() + b"\n")
    found = lineage(settings_of(home), str(path))
    assert (found["versions"], found["other_content"]) == ([], [1])
    assert "no version was trained on it" in as_lines(found)


@pytest.mark.slow
def test_a_corrected_recording(home: Path, settings_of: Callable[..., Any]) -> None:
    """Both contents tell of each other, and which versions learnt which."""
    relabel(home / "used_gts" / "old_01.csv", home / "new_gts" / "again.csv")
    settings = settings_of(home)
    assert run_orchestrator(settings).outcome is Outcome.PROMOTED
    (kept,) = (home / "used_gts" / "replaced").iterdir()
    new, old = (lineage(settings, name) for name in ("old_01.csv", kept.name))
    assert ([one["version"] for one in new["versions"]], new["older_content"]) == ([2], [1])
    assert ([one["version"] for one in old["versions"]], old["older_content"]) == ([1], [])
    (change,) = new["changes"]
    assert old["changes"] == [change]
    assert ": corrected: again.csv takes the place of used_gts/old_01.csv, " in change
    assert change.endswith(f"the old one is kept as used_gts/replaced/{kept.name}")
    assert as_lines(new)[2:] == [change, "version 1: learnt it as it was before"]


def test_a_manifest_that_is_gone_is_said(
    home: Path, settings_of: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The others are still looked at."""
    (manifest,) = (home / "mlflow_server").rglob("training_files.json")
    manifest.unlink()
    found = lineage(settings_of(home), "old_01.csv")
    assert found["unknown"] == [1]
    assert "training_files.json of version 1 is missing" in caplog.text


def test_an_unknown_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 1."""
    assert main(["lineage", "nowhere.csv", "--home", str(home)]) == 1
    assert capsys.readouterr().err.startswith("error: there is no file 'nowhere.csv'")


def test_a_name_with_a_line_break_stays_on_its_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And cannot forge another one."""
    path = shutil.copyfile(home / "used_gts" / "old_01.csv", home / "a\nversion 9.csv")
    assert main(["lineage", str(path), "--home", str(home)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{home}/a\\nversion 9.csv: SHA-256 ")
    assert len(lines) == 2
