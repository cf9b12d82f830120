"""`import`: put what `export` wrote into the store of the settings and this home's journal."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from retraining import recovery
from retraining.archives import Extracted, extracted
from retraining.command_line import Command, print_result
from retraining.commands.transfer import (
    KIND,
    Imported,
    Transfer,
    entries_of,
    key_of,
    read_transfer,
)
from retraining.errors import EXIT_DONE, PipelineError, TryLaterError, UsageError
from retraining.files import exclusive_lock
from retraining.journal import Entry, Journal, Memory, Vouch, who
from retraining.registry import Registry, open_registry
from retraining.registry.facts import (
    PRODUCTION,
    TAG_ARTIFACT_HASH,
    TAG_MANIFEST_HASH,
    RegisteredVersion,
)
from retraining.registry.pruned import Pruned
from retraining.registry.store import create_store
from retraining.registry.stored_models import MOST_FILES, folder_digest, older_folder_digest
from retraining.settings import Settings, check_home
from retraining.text import now, printable
from retraining.typed_names import path_meant

logger = logging.getLogger("pipeline")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what `export` wrote")
    parser.add_argument(
        "--reason", default="", metavar="TEXT", help="why it is trusted, if it is of another home"
    )


def _work(settings: Settings, options: argparse.Namespace) -> int:
    lines = import_model(settings, path_meant(options.file), options.reason)
    print_result(lines, {}, as_json=False)
    return EXIT_DONE


def import_model(settings: Settings, path: Path, reason: str = "") -> list[str]:
    """Import an archive; return what was done, in lines. Again, it completes or does nothing.

    Parameters
    ----------
    reason
        Why a person trusts it; needed where this home did not vouch for all of it before.

    Raises
    ------
    UsageError
        If it is of another home and there is no reason.
    PipelineError
        If it is damaged or of another model, or if the store has other versions of that name.

    Notes
    -----
    Runs, versions, then the journal when every digest is verified, aliases last: `production` is
    not there before all that it needs is.
    """
    check_home(settings)
    with exclusive_lock(settings, "import"):
        recovery.tidy(settings)
        with extracted(path, KIND) as archive:
            transfer = read_transfer(archive, path)
            _check(settings, transfer, archive, path)
            if settings.database is None or settings.database.is_file():
                copies = open_registry(settings, create=True).copies
                if copies.archive_of_model() == archive.sha256:
                    return [f"{path} was imported into this store before; nothing changed"]
                if copies.came_from_here(transfer.versions):
                    return [f"{path} is of this very store; nothing changed"]
                _refuse_others(settings, copies.not_of(archive.sha256))
            memory = Journal(settings.home).read()
            if not reason.strip() and not _is_known(transfer, memory):
                raise UsageError(
                    f"{path} holds versions that this home did not register: say with --reason "
                    "TEXT where they come from and why they are trusted"
                )
            create_store(settings)
            registry = open_registry(settings, create=True)
            return _imported(settings, registry, transfer, archive, reason)


def _check(settings: Settings, transfer: Transfer, archive: Extracted, path: Path) -> None:
    """Refuse an archive of another model, and versions that are too large for this home.

    Raises
    ------
    PipelineError
        With the flag that would take it.
    """
    if transfer.model_name != settings.model_name:
        name = printable(transfer.model_name)
        raise PipelineError(
            f"{path} holds the model {name!r}, not {settings.model_name!r}; if that is meant, add "
            f"--model-name {shlex.quote(name)}"
        )
    by_folder: dict[str, list[int]] = {}
    for name, n_bytes in archive.sizes.items():
        if "/" in name:
            by_folder.setdefault("/".join(name.split("/")[:2]), []).append(n_bytes)
    for folder, sizes in by_folder.items():
        if sum(sizes) > settings.max_model_mb * 1e6 or len(sizes) > MOST_FILES:
            raise PipelineError(
                f"{printable(folder)} of {path} is more than {settings.max_model_mb:g} MB, or more "
                f"than {MOST_FILES} files; raise --max-model-mb if it should be"
            )


def _refuse_others(settings: Settings, numbers: Collection[int]) -> None:
    if numbers:
        shown = ", ".join(str(one) for one in numbers)
        raise PipelineError(
            f"the store {printable(settings.store_uri)} has versions of {settings.model_name!r} "
            f"that are not of this archive ({shown}): import into another store, or delete that "
            "registered model in MLflow first"
        )


def _is_known(transfer: Transfer, memory: Memory) -> bool:
    """Say whether this home's own journal says all that the archive says."""
    known = {key_of(one) for one in entries_of(memory, transfer.model_name)}
    return bool(known) and all(key_of(one) in known for one in transfer.entries)


def _imported(
    settings: Settings, registry: Registry, transfer: Transfer, archive: Extracted, reason: str
) -> list[str]:
    registry.create_experiment_and_model()
    copies = registry.copies
    runs = _folders(archive, "runs")
    versions = {int(name): path for name, path in _folders(archive, "versions").items()}
    run_ids = dict(copies.make_runs(archive.sha256, transfer.runs, runs))
    logger.info("%d runs are there", len(run_ids))
    copies.make_versions(archive.sha256, transfer.versions, run_ids, versions)
    logger.info("%d versions are there, their files are read back", len(transfer.versions))
    verified, notes = _verified(registry, transfer, versions)
    entries = _entries(transfer, run_ids, verified)
    journal = Journal(settings.home)
    known = {key_of(one) for one in entries_of(journal.read(), transfer.model_name)}
    new = [one for one in entries if key_of(one) not in known]
    if new:
        word = Imported(
            archive=archive.sha256,
            home_id=transfer.home_id,
            model_name=transfer.model_name,
            versions=len(transfer.versions),
            reason=reason,
            who=who(),
            at=now(),
        )
        journal.append(*new, word)
    deleted = [run_ids[one.run_id] for one in transfer.runs if one.deleted]
    copies.complete(archive.sha256, transfer.model, deleted)
    production = transfer.model.aliases.get(PRODUCTION)
    return [
        *notes,
        f"imported {len(transfer.versions)} versions and {len(run_ids)} runs of "
        f"{transfer.model_name}: "
        + (f"version {production} is production" if production else "none is production"),
    ]


def _folders(archive: Extracted, kind: str) -> dict[str, Path]:
    """Return the folders of one kind in an archive by their names."""
    names = {name.split("/")[1] for name in archive.sizes if name.startswith(f"{kind}/")}
    return {name: archive.folder / kind / name for name in names}


def _verified(
    registry: Registry, transfer: Transfer, files: Mapping[int, Path]
) -> tuple[dict[int, Vouch], list[str]]:
    """Read every version back; return the words that hold for it, and which do not.

    Raises
    ------
    PipelineError
        If the store has other files than it was given.
    """
    said = {one.version: one for one in transfer.entries if isinstance(one, Vouch)}
    pruned = {(one.version, one.run_id) for one in transfer.entries if isinstance(one, Pruned)}
    found, notes = {}, []
    for copy in transfer.versions:
        version, digest = registry.versions.get(copy.number), ""
        if copy.number in files:
            digest = folder_digest(files[copy.number])
            if registry.models.digest(version, pruned_too=True) != digest:
                raise PipelineError(
                    f"the store has not the files of version {copy.number} that it was given; "
                    "check it, then import again"
                )
        vouch = said.get(copy.number)
        if vouch is None or vouch.run_id != copy.run_id:
            continue
        older = older_folder_digest(files[copy.number]) if digest else None
        whole = version.tags.get(TAG_ARTIFACT_HASH, "-") in (digest, older)
        if _holds(registry, version, vouch) and (whole or (copy.number, copy.run_id) in pruned):
            found[copy.number] = vouch
        else:
            notes.append(f"version {copy.number} is not as it was registered: not vouched for")
    return found, notes


def _holds(registry: Registry, version: RegisteredVersion, vouch: Vouch) -> bool:
    """Say whether a word is for what a version says of itself, and for what it learnt."""
    tags = (version.tags.get(TAG_ARTIFACT_HASH, ""), version.tags.get(TAG_MANIFEST_HASH, ""))
    if (vouch.digest and vouch.digest != version.digest) or (
        not vouch.digest and tags != (vouch.artifact_sha256, vouch.manifest_sha256)
    ):
        return False
    try:
        registry.versions.manifest(version)
    except TryLaterError:
        raise
    except PipelineError:
        return TAG_MANIFEST_HASH not in version.tags  # it never said what it learnt
    return True


def _entries(
    transfer: Transfer, run_ids: Mapping[str, str], verified: Mapping[int, Vouch]
) -> list[Entry]:
    """Return what the journal is to say, with the runs of this store; of vouches what holds."""
    found: list[Entry] = []
    for one in transfer.entries:
        if isinstance(one, Vouch) and one is not verified.get(one.version):
            continue
        facts = dataclasses.asdict(one)
        if facts.get("run_id") in run_ids:
            facts["run_id"] = run_ids[facts["run_id"]]
        found.append(type(one)(**facts))
    return found


COMMAND = Command("import", "put what export wrote into this store", _add_flags, _work)
