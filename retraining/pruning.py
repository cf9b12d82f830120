"""Remove the model files of versions that lost: nothing needs them any more but a person's look.

All else of such a version stays, in MLflow and in the journal: code, manifest, out-of-fold errors,
verdict, history. Later verdicts depend on those alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass

from retraining.errors import stop_request
from retraining.files import listed
from retraining.journal import Journal
from retraining.registry import Registry
from retraining.registry.facts import (
    TAG_PRUNED,
    TAG_VERDICT,
    VERDICT_REJECT,
    RegisteredVersion,
)
from retraining.registry.pruned import Pruned, pruned_of, pruning_of
from retraining.registry.stored_models import MODEL_FILE
from retraining.settings import Settings
from retraining.text import moment, now, size_text

MS_PER_DAY = 86_400_000
logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Pruning:
    """What was pruned, or would be.

    Parameters
    ----------
    versions
        Number -> bytes of its model file.
    notes
        What was left although it lost, in a sentence each.
    """

    versions: dict[int, int]
    notes: tuple[str, ...]

    @property
    def in_words(self) -> str:
        """How many versions, and what that frees."""
        n_versions = len(self.versions)
        plural = "" if n_versions == 1 else "s"
        return f"{n_versions} version{plural}, {size_text(sum(self.versions.values()))}"


def prune(
    settings: Settings,
    registry: Registry,
    *,
    keep: int,
    older_than_days: float = 0.0,
    dry_run: bool = False,
) -> Pruning:
    """Remove the model files of versions that lost, were never production and have no alias.

    Parameters
    ----------
    keep
        So many of the newest that lost keep theirs.
    older_than_days
        And so do those that are younger.
    dry_run
        Remove nothing.

    Raises
    ------
    PipelineError
        If the artifact store refuses; what was pruned before stays so.

    Notes
    -----
    The journal first, then the file, then the tag: killed in between, the next pruning completes
    what the journal tells and the tag does not. A file that somebody restored has that tag and
    stays.
    """
    memory = Journal(settings.home).read()
    named = _named(registry)
    lost = _lost(registry, named)
    begun = pruned_of(memory, settings.model_name)
    latest_ms = time.time() * 1000 - older_than_days * MS_PER_DAY
    chosen = [
        one
        for place, one in enumerate(lost)
        if TAG_PRUNED not in one.tags
        and (
            (one.number, one.run_id) in begun
            or (place >= keep and (not older_than_days or one.created_ms <= latest_ms))
        )
    ]
    ours = [one for one in chosen if registry.vouches.of(one, memory)]
    foreign = [f"{one.number}" for one in chosen if one not in ours]
    notes = [f"left: version {listed(foreign)}: this home does not vouch for it"] if foreign else []
    taken: dict[int, int] = {}
    places = {
        registry.models.location(one)
        for one in (registry.versions.all() if ours else ())
        if one.number in named
    }
    for version in sorted(ours, key=lambda one: one.number):
        stop_request.obey()
        location = registry.models.location(version)
        if location in places:
            notes.append(f"left: version {version.number}: its files are those of another version")
            continue
        n_bytes = registry.models.model_file_bytes(location)
        entry = pruning_of(version, memory, settings.model_name)
        if n_bytes is None and entry is None:
            notes.append(f"version {version.number} has no {MODEL_FILE}, and was not pruned")
            continue
        if n_bytes is not None:
            taken[version.number] = n_bytes
        if not dry_run:
            _remove(settings, registry, version, n_bytes, entry)
    return Pruning(taken, tuple(notes))


def _named(registry: Registry) -> set[int]:
    """Return the versions that are or were production, or have an alias of anybody."""
    if not registry.versions.model_exists():
        return set()
    return registry.production.ever() | {*registry.versions.aliases().values()}


def _lost(registry: Registry, named: Collection[int]) -> list[RegisteredVersion]:
    """Return the versions that lost and nothing names, the newest first."""
    return [
        one
        for one in registry.versions.all()
        if one.tags.get(TAG_VERDICT) == VERDICT_REJECT and one.number not in named
    ]


def _remove(
    settings: Settings,
    registry: Registry,
    version: RegisteredVersion,
    n_bytes: int | None,
    entry: Pruned | None,
) -> None:
    """Remove one model file, or complete what a crash left of it."""
    name = settings.model_name
    if entry is None:
        entry = Pruned(version.number, version.run_id, name, now(), n_bytes or 0)
        Journal(settings.home).append(entry)
    if n_bytes is not None:
        registry.models.delete_model_file(registry.models.location(version))
    text = f"{moment(entry.at)}: {MODEL_FILE} removed, {size_text(entry.n_bytes)}"
    registry.versions.set_tag(version.number, TAG_PRUNED, text)
    logger.info("version %d is pruned, %s freed", version.number, size_text(n_bytes or 0))
