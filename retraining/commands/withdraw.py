"""`withdraw`: take recordings out of the training data for good, or take that back."""

from __future__ import annotations

import argparse
import base64
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retraining import ground_truth, recovery
from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, PipelineError
from retraining.files import (
    UnusableFile,
    exclusive_lock,
    free_name,
    hash_regular_file,
)
from retraining.journal import Journal, WithdrawalUndone, Withdrawn, who
from retraining.registry import Registry, open_registry
from retraining.registry.facts import NotInRegistry
from retraining.settings import Settings, check_home
from retraining.text import now
from retraining.training import load_training_module
from retraining.typed_names import name_meant


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="of recordings in used_gts/ or new_gts/"
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--undo", action="store_true", help="take a withdrawal back")
    either.add_argument(
        "--delete", action="store_true", help="delete the files; else they go to withdrawn/"
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for later readers")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    if options.undo:
        found = undo(settings, options.names)
    else:
        found = withdraw(settings, options.names, delete=options.delete, reason=options.reason)
    print_result(as_lines(found), found, as_json=options.json)
    return EXIT_DONE


def withdraw(
    settings: Settings, names: Sequence[str], *, delete: bool, reason: str
) -> dict[str, Any]:
    """Take recordings out of the training data, and refuse them from now on.

    Parameters
    ----------
    names
        In used_gts/ or new_gts/; or of recordings that production learnt and that are gone.
    delete
        Keep nothing but digests and a sketch of the observations; also of what was withdrawn
        before and is in withdrawn/.

    Returns
    -------
    dict
        `withdrawn`: `name`, `sha256`, `kept_as` (below the home; empty if deleted or gone) and
        `learnt_by` (versions) of each; `reason`.

    Raises
    ------
    PipelineError
        If a name is unknown, or the registry does not say who learnt it; nothing is changed then.
    """
    check_home(settings)
    with exclusive_lock(settings, "withdraw"):
        recovery.tidy(settings)
        from retraining.intake import known_files

        memory = Journal(settings.home).read()
        training = load_training_module(settings)
        manifests, production = _manifests(settings)
        learnt = {} if production is None else manifests.get(production, {})
        withdrawn = ground_truth.withdrawn_recordings(settings, memory)
        house = _House(settings, learnt, withdrawn, delete)
        found = {one.sha256: one for one in map(house.find, names)}
        known = known_files(settings, training, [one.path for one in found.values() if one.folder])
        entries: list[Withdrawn] = []
        for sha256, one in found.items():
            row = known.row(sha256)
            taken = [entry.kept_as for entry in entries]
            keep = bool(one.folder) and not delete
            entries.append(
                Withdrawn(
                    sha256=sha256,
                    known="" if row is None else base64.b64encode(row.tobytes()).decode(),
                    # Goes with it where it is deleted, so not where its file is merely gone.
                    earlier=memory.earlier_contents(sha256) if keep or delete else [],
                    folder=one.folder,
                    name=one.path.name,
                    kept_as=free_name(one.path.name, settings.withdrawn_gts, taken) if keep else "",
                    reason=reason or one.reason,
                    who=who(),
                    at=now(),
                )
            )
        with recovery.unfinished_until_done(settings, "withdraw"):
            known.save()
            Journal(settings.home).append(*entries)
            for entry in entries:
                ground_truth.finish_withdrawal(settings, entry)
    return {
        "withdrawn": [
            {
                "name": one.name,
                "sha256": one.sha256,
                "kept_as": f"{settings.withdrawn_gts.name}/{one.kept_as}" if one.kept_as else "",
                "learnt_by": sorted(
                    number
                    for number, learnt in manifests.items()
                    if not {one.sha256, *memory.earlier_contents(one.sha256)}.isdisjoint(learnt)
                ),
            }
            for one in entries
        ],
        "reason": reason,
        "production": production,
    }


def _manifests(settings: Settings) -> tuple[dict[int, Mapping[str, str]], int | None]:
    """Return version -> (SHA-256 -> name), and which one is production."""
    registry: Registry | None = None
    with contextlib.suppress(NotInRegistry):
        if settings.database is None or settings.database.exists():
            registry = open_registry(settings)
    if registry is None or not registry.versions.model_exists():
        return {}, None
    manifests: dict[int, Mapping[str, str]] = {
        version.number: manifest.names
        for version, manifest in registry.versions.manifests()
        if manifest
    }
    return manifests, registry.production.number()


@dataclass(frozen=True)
class _Found:
    """A recording that is to be withdrawn; no folder if its file is gone."""

    sha256: str
    path: Path
    folder: str
    reason: str = ""


@dataclass(frozen=True)
class _House:
    """Where a recording may be: in a folder, withdrawn before, or in what production learnt."""

    settings: Settings
    learnt: Mapping[str, str]
    withdrawn: Mapping[str, Withdrawn]
    delete: bool

    def find(self, name: str) -> _Found:
        """Return the recording of a name, which may have its folder before it."""
        wanted = Path(name)
        folders = [
            folder
            for folder in (self.settings.used_gts, self.settings.new_gts)
            if str(wanted.parent) in (".", folder.name)
        ]
        known = [one.name for one in self.withdrawn.values()] + [*self.learnt.values()]
        wanted = wanted.parent / name_meant(wanted.name, folders, known)
        for folder in folders:
            path = folder / wanted.name
            if path.is_file() and not path.is_symlink():
                return _Found(_hash(path), path, folder.name)
        for entry in self.withdrawn.values():
            if wanted.name == entry.name:
                return self._find_withdrawn(entry)
        for sha256, known_as in self.learnt.items():
            if known_as == str(wanted):
                return _Found(sha256, wanted, "")
        raise PipelineError(
            f"there is no recording {name!r} in used_gts/ or new_gts/, and production learnt none "
            "of that name; nothing was changed"
        )

    def _find_withdrawn(self, entry: Withdrawn) -> _Found:
        path = self.settings.withdrawn_gts / (entry.kept_as or entry.name)
        if self.delete and entry.kept_as and path.is_file():
            return _Found(entry.sha256, path, path.parent.name, entry.reason)
        kept = f"withdrawn/{entry.kept_as}" if entry.kept_as else "nothing of it"
        raise PipelineError(
            f"{entry.name} was withdrawn on {entry.at[:10]} already, {kept} is kept; nothing was "
            "changed"
        )


def _hash(path: Path) -> str:
    try:
        return hash_regular_file(path)
    except UnusableFile as error:
        raise PipelineError(f"{path} {error}; nothing was changed") from error


def undo(settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """Take withdrawals back: the files return to where they lay.

    Returns
    -------
    dict
        `returned`: `name` and `place` (below the home; empty if nothing was kept) of each.

    Raises
    ------
    PipelineError
        If nothing of that name is withdrawn; nothing is changed then.
    """
    check_home(settings)
    with exclusive_lock(settings, "withdraw"):
        recovery.tidy(settings)
        journal = Journal(settings.home)
        memory = journal.read()
        entries = _withdrawn_as(ground_truth.withdrawn_recordings(settings, memory), names)
        with recovery.unfinished_until_done(settings, "withdraw"):
            # One that lies in withdrawn/ without a word in the journal is told there first.
            untold = [one for one in entries if one.sha256 not in memory.withdrawn()]
            undone = [WithdrawalUndone(one.sha256, who(), now()) for one in entries]
            journal.append(*untold, *undone)
            places = [ground_truth.finish_return(settings, one) for one in entries]
    returned = zip(entries, places, strict=True)
    return {"returned": [{"name": one.name, "place": place} for one, place in returned]}


def _withdrawn_as(hold: Mapping[str, Withdrawn], names: Sequence[str]) -> list[Withdrawn]:
    by_name = {one.name: one for one in hold.values()}
    names = list(dict.fromkeys(name_meant(Path(name).name, [], by_name) for name in names))
    missing = sorted(name for name in names if name not in by_name)
    if missing:
        raise PipelineError(
            f"nothing is withdrawn as {', '.join(missing)}; withdrawn are: "
            f"{', '.join(sorted(by_name)) or 'none'}"
        )
    return [by_name[name] for name in names]


def as_lines(found: Mapping[str, Any]) -> list[str]:
    """Return what was done as lines for a person."""
    lines = []
    for one in found.get("withdrawn", ()):
        kept = f"kept as {one['kept_as']}" if one["kept_as"] else "nothing of it is kept"
        versions = ", ".join(map(str, one["learnt_by"]))
        learnt = f"learnt by version {versions}" if versions else "no version learnt it"
        lines.append(f"withdrawn: {one['name']}, {kept}; {learnt}")
        if found["production"] in one["learnt_by"]:
            lines.append(
                "production learnt it: to train and judge a version without it now: "
                "python pipeline_orchestrator.py run --retrain"
            )
    for one in found.get("returned", ()):
        place = f"it is {one['place']} again" if one["place"] else "put its file into new_gts/"
        lines.append(f"withdrawal undone: {one['name']}: {place}")
    return list(dict.fromkeys(lines))


COMMAND = Command("withdraw", "take recordings out of the training data", _add_flags, _work)
