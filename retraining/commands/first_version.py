"""Make a version the first production of a registry, as `register_first_model.py` does."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from retraining import notices, recovery, vouching
from retraining.registry import Registry
from retraining.registry.facts import (
    EVENT_REGISTRATION,
    FIRST_RUN,
    TAG_CYCLE,
    TAG_UNIT,
    RegisteredVersion,
    RunRecord,
)
from retraining.settings import Settings
from retraining.training import Training


@dataclass(frozen=True)
class FirstVersion:
    """What is to become the first production, and what is known of it.

    Parameters
    ----------
    store
        Registers it with the open run, given the run's id and tags.
    record
        What that run keeps.
    source, measured
        Where it comes from and how good it is, in words.
    mean_error
        By models that never saw the recordings; None if not known.
    """

    store: Callable[[str, Mapping[str, str]], RegisteredVersion]
    record: RunRecord
    source: str
    measured: str
    mean_error: float | None


def make_production(
    settings: Settings,
    registry: Registry,
    training: Training,
    first: FirstVersion,
    replaces: int | None = None,
) -> RegisteredVersion:
    """Register a version with its run, make sure that it loads, and make it production.

    Parameters
    ----------
    replaces
        The production version until now.
    """
    with recovery.unfinished_until_done(settings, "register") as cycle_id:
        tags = {TAG_CYCLE: cycle_id, TAG_UNIT: training.error_unit}
        registry.create_experiment_and_model()
        vouching.seed(settings, registry)  # the home has an id from here on, which marks the run
        with registry.runs.open(FIRST_RUN, tags) as run_id:
            registry.runs.log(run_id, first.record)
            version = first.store(run_id, tags)
        vouching.vouch_for(settings, registry, version)
        registry.models.load_and_try(version, training)
        today = datetime.date.today().isoformat()
        registry.versions.describe(
            version.number, f"first model {first.source}, registered {today}: {first.measured}"
        )
        registry.production.move_to(
            version.number,
            replaces=replaces,
            event=EVENT_REGISTRATION,
            why=f"first model {first.source}, {first.measured}",
            tags=tags,
            mean_errors=(None, first.mean_error),
        )
        notices.announce_change(settings, registry, cycle_id)
    return version
