"""A version that a person makes production brings its recordings along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, OLD_SEASON_FILES, both_modules
from test_pipeline_orchestrator import contents, registry_of
from test_recorder import manifest_of

from pipeline_orchestrator import run_orchestrator
from retraining.commands.rollback import rollback
from retraining.commands.status import status
from retraining.outcome import Outcome

pytestmark = pytest.mark.usefixtures("fast_training")


@pytest.fixture
def lost(home: Path, settings_of: Callable[..., Any]) -> Path:
    """Give a home whose version 2 lost, with its files waiting."""
    result = run_orchestrator(settings_of(home, min_improvement=90))
    assert result.outcome is Outcome.NOT_PROMOTED
    return home


@both_modules
def test_what_a_loser_learnt_is_archived(lost: Path, settings_of: Callable[..., Any]) -> None:
    """At once; and stays used when the version before comes back."""
    settings = settings_of(lost)
    everything = sorted(contents(lost / "used_gts") + contents(lost / "new_gts"))
    rollback(settings, 2)
    assert contents(lost / "new_gts") == []
    assert contents(lost / "used_gts") == everything == sorted(manifest_of(settings, 2))
    assert status(settings, None)["training_data"] == []
    rollback(settings, None)
    assert registry_of(settings).production.number() == 1
    assert contents(lost / "used_gts") == everything
    assert len(everything) == OLD_SEASON_FILES + BATCH
    (line,) = status(settings, None)["training_data"]
    assert line.startswith("production did not learn new_01.csv, new_02.csv, ")
    assert not (lost / "new_gts/rejected").exists()


def test_a_version_that_does_not_say_what_it_learnt(
    lost: Path, settings_of: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It may be named all the same; nothing is archived."""
    settings = settings_of(lost)
    registry = registry_of(settings)
    run = registry.runs.connection.client.get_run(registry.versions.get(2).run_id)
    Path(run.info.artifact_uri.removeprefix("file://"), "training_files.json").unlink()
    assert rollback(settings, 2).startswith("rolled back: version 2 is production")
    assert "nothing archived: training_files.json of version 2 is missing" in caplog.text
    assert len(contents(lost / "new_gts")) == BATCH
    assert not (lost / ".pipeline_state.json").exists()
