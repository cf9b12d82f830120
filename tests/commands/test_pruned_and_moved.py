"""A pruned version stays one that was pruned, wherever its home goes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from losers import add_loser, folder_of

from retraining.commands.backup import backup
from retraining.commands.history import history
from retraining.commands.lineage import lineage
from retraining.commands.prune import prune
from retraining.commands.reproduce import reproduce
from retraining.commands.restore import restore
from retraining.commands.rollback import rollback
from retraining.errors import PipelineError
from retraining.registry import open_registry
from retraining.registry.relocation import relocate
from retraining.registry.stored_models import MODEL_FILE

SettingsOf = Callable[..., Any]


@pytest.fixture
def pruned(home: Path, settings_of: SettingsOf) -> Path:
    """Give a home whose version 2 is pruned, and 3 is not."""
    settings = settings_of(home)
    for _ in range(2):
        add_loser(settings)
    assert prune(settings, 1)[-1].startswith("pruned 1 version, ")
    return home


def go(how: str, home: Path, settings_of: SettingsOf) -> tuple[Any, list[str]]:
    """Bring a home elsewhere; return the settings there, and what was said."""
    settings = settings_of(home.parent / "elsewhere")
    if how == "moved":
        shutil.copytree(home, settings.home)  # this process has the old store open
        shutil.rmtree(home)
        return settings, relocate(settings, as_copy=False)
    backup(settings_of(home), home.parent / "stems.tar")
    shutil.rmtree(home)
    return settings, restore(settings, home.parent / "stems.tar")


def known(settings: Any) -> list[Any]:
    """Return what is told of versions, and what asking for the pruned one says."""
    with pytest.raises(PipelineError) as refused:
        reproduce(settings, 2)
    found = lineage(settings, "old_01.csv")
    return [history(settings), found["versions"], str(refused.value)]


@pytest.mark.sampled(0.5)
@pytest.mark.slow
@pytest.mark.parametrize("how", ["moved", pytest.param("restored", marks=pytest.mark.slow)])
def test_it_is_told_as_pruned(how: str, pruned: Path, settings_of: SettingsOf) -> None:
    """With the day, not as missing or changed; all that is known of it is what it was."""
    before = known(settings_of(pruned))
    settings, lines = go(how, pruned, settings_of)
    said = f"version 2 of {settings.model_name}: pruned on {time.strftime('%Y-%m-%d')} "
    (line,) = [one for one in lines if one.startswith("version ")]
    assert line.startswith(said)
    assert line.endswith(f": its {MODEL_FILE} is gone")
    assert any("2 versions are whole" in one for one in lines)
    assert known(settings) == before
    assert prune(settings, 1)[-1].startswith("nothing to prune")


@pytest.mark.sampled(0.5)
@pytest.mark.slow
@pytest.mark.parametrize("how", ["moved", "restored"])
def test_a_home_is_pruned_where_it_went(how: str, home: Path, settings_of: SettingsOf) -> None:
    """The other order: the new place is the one that is pruned."""
    for _ in range(2):
        add_loser(settings_of(home))
    settings, lines = go(how, home, settings_of)
    assert any("3 versions are whole" in one for one in lines)
    assert prune(settings, 1)[-1].startswith("pruned 1 version, ")
    assert not (folder_of(settings, 2) / MODEL_FILE).exists()
    assert known(settings)[2].startswith("version 2 was pruned on ")


@pytest.mark.sampled(0.5)
@pytest.mark.slow
@pytest.mark.parametrize("name", [MODEL_FILE, "MLmodel"])
def test_another_file_or_version_is_still_missed(
    name: str, pruned: Path, settings_of: SettingsOf
) -> None:
    """The journal vouches for one file of one version."""
    (folder_of(settings_of(pruned), 3) / name).unlink()
    _, lines = go("moved", pruned, settings_of)
    assert any(line.startswith("version 3 ") and "are not those that" in line for line in lines)


@pytest.mark.slow
def test_a_pruned_one_that_a_hand_made_production_is_no_dead_end(
    pruned: Path, settings_of: SettingsOf
) -> None:
    """The move ends, and says what it lacks; then a rollback mends it."""
    settings = settings_of(pruned)
    client = open_registry(settings).runs.connection.client
    client.set_registered_model_alias(settings.model_name, "production", "2")
    there, lines = go("moved", pruned, settings_of)
    assert any("version 2 " in one and "is not whole: pruned on " in one for one in lines)
    assert rollback(there, None).endswith("version 1 is production, it was version 2")
