"""What this home vouches for: versions that it registered, or that a person trusts, in its journal.

Whoever may edit a tag or an artifact in the store cannot edit the journal. `registry.vouches` asks
it before anything of a version is loaded or run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from retraining.errors import PipelineError, TryLaterError
from retraining.journal import Journal, Memory, Vouch, who
from retraining.looks import Look
from retraining.outcome import Outcome
from retraining.registry import Registry
from retraining.registry.facts import (
    LOOK_FILE,
    TAG_ARTIFACT_HASH,
    TAG_MANIFEST_HASH,
    WHOLE_NUMBER,
    RegisteredVersion,
)
from retraining.settings import Settings
from retraining.text import now, printable

MOST_LOOKS = 1000
logger = logging.getLogger("pipeline")


def vouch_for(
    settings: Settings, registry: Registry, version: RegisteredVersion, reason: str = ""
) -> None:
    """Vouch for a version; twice is as good as once.

    Parameters
    ----------
    version
        With the digests of what this home stored itself, or of what a person trusts.
    reason
        Why a person does.

    Notes
    -----
    Before the alias moves: whatever dies in between, no production version is without a vouch. One
    for a version that never became production does no harm.
    """
    seed(settings, registry)  # else the journal would be begun without what production is and was
    vouch, journal = _vouch(settings, version), Journal(settings.home)
    if reason:
        vouch = replace(vouch, reason=reason, who=who(), at=now())
    if registry.vouches.last(version, journal.read()) != vouch:
        journal.append(vouch)


def seed(settings: Settings, registry: Registry) -> None:
    """Begin the journal of a home that has none, of an older pipeline or lost, and say so.

    Notes
    -----
    With what production is and was, as far as it verifies, where the store is a file of this home;
    a shared one may say anything, and a person must. Cheap where there is a journal.

    Raises
    ------
    TryLaterError
        If the store does not answer; the journal is not begun then.
    """
    journal = Journal(settings.home)
    memory = journal.read()
    if memory.number:
        if not all(one.digest for one in memory.vouches(settings.model_name).values()):
            _renew(settings, registry, memory)
        return
    vouches, refused = [], []
    numbers = (registry.production.number(), registry.production.previous_number())
    for number in dict.fromkeys(one for one in numbers if one is not None):
        try:
            if not settings.has_own_store:
                raise PipelineError("others may edit that store")
            vouches.append(_verified(settings, registry, registry.versions.get(number)))
        except TryLaterError:
            raise
        except PipelineError as error:
            refused.append(f"not for version {number} ({error})")
    journal.append(*vouches, *_looks_of_runs(settings, registry))
    if not (vouches or refused):  # a first registration, which says itself what it registers
        return
    said = [" and ".join(f"version {one.version}" for one in vouches) or "no version", *refused]
    level = logging.WARNING if refused else logging.INFO
    logger.log(level, "began %s: it vouches for %s", journal.path, ", ".join(said))


def _renew(settings: Settings, registry: Registry, memory: Memory) -> None:
    """Let the words of an older pipeline for production cover all that decides."""
    for number in {registry.production.number(), registry.production.previous_number()} - {None}:
        version = registry.versions.get(int(number or 0))
        said = registry.vouches.of(version, memory)
        if said and not said.digest:
            Journal(settings.home).append(_vouch(settings, registry.versions.seal(version)))


def _looks_of_runs(settings: Settings, registry: Registry) -> Iterator[Look]:
    """Give the looks that the monitoring runs keep, the oldest first.

    One that cannot be read is as good as known: it counts against the next challenger.
    """
    compared = {Outcome.PROMOTED.value, Outcome.NOT_PROMOTED.value}
    for run in reversed(registry.runs.monitored(limit=MOST_LOOKS)):
        content = registry.runs.artifact(run.run_id, LOOK_FILE)
        # An older pipeline kept none.
        if content is None and (run.outcome not in compared or not run.n_decided):
            continue
        try:
            yield Look.from_bytes(content or b"")
        except ValueError as error:
            logger.warning(
                "%s of run %s cannot be read (%s): it counts as a look at the same recordings",
                *(LOOK_FILE, run.run_id, printable(error)),
            )
            known = WHOLE_NUMBER.fullmatch(run.version)
            yield Look.unknown(settings.model_name, int(run.version) if known else 0)


def _verified(settings: Settings, registry: Registry, version: RegisteredVersion) -> Vouch:
    """Compare the files of a version with the digests that it was registered with."""
    missing = {TAG_ARTIFACT_HASH, TAG_MANIFEST_HASH} - set(version.tags)
    if missing:
        raise PipelineError(
            f"version {version.number} has no {', '.join(sorted(missing))}: it was not registered "
            "by this pipeline, or somebody edited it"
        )
    registry.versions.manifest(version)
    return _vouch(settings, registry.versions.seal(version))


def _vouch(settings: Settings, version: RegisteredVersion) -> Vouch:
    return Vouch(
        version=version.number,
        artifact_sha256=version.tags.get(TAG_ARTIFACT_HASH, ""),
        manifest_sha256=version.tags.get(TAG_MANIFEST_HASH, ""),
        run_id=version.run_id,
        model_name=settings.model_name,
        digest=version.digest,
    )
