"""`correct`: let corrected recordings take the place of the old ones, on a person's word."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from retraining import ground_truth, records, recovery
from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, PipelineError
from retraining.files import exclusive_lock
from retraining.journal import Journal, Replaced
from retraining.registry import open_registry
from retraining.settings import Settings, check_home
from retraining.training import load_training_module
from retraining.typed_names import name_meant


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="of files in new_gts/rejected/ or new_gts/"
    )


def _work(settings: Settings, options: argparse.Namespace) -> int:
    print_result(correct(settings, options.names), {}, as_json=False)
    return EXIT_DONE


def correct(settings: Settings, names: Sequence[str]) -> list[str]:
    """Put corrected files in the place of the old ones, however many labels they change.

    Parameters
    ----------
    names
        Of files in new_gts/rejected/, where a night parked them, or in new_gts/. One that corrects
        nothing, because its twin was parked too, goes back to new_gts/ as a new recording.

    Raises
    ------
    PipelineError
        If a name is unknown, or a file cannot be used; nothing is changed then.
    """
    check_home(settings)
    with exclusive_lock(settings, "correct"):
        recovery.tidy(settings)
        from retraining import intake
        from retraining.known_recordings import KnownRecordings

        paths = list(dict.fromkeys(_find(settings, name) for name in names))
        registry, training = open_registry(settings), load_training_module(settings)
        journal = Journal(settings.home)
        known = KnownRecordings.of(settings.home, training)
        learnt = registry.learnt_by(registry.production.champion()).names
        found = intake.take_in(
            settings, training, known, journal.read(), intake.Learnt(learnt), stood_for=paths
        )
        wanted = {str(path.relative_to(settings.home)): path for path in paths}
        made = [one for one in found.replacements if one.source in wanted]
        _check_one_for_each(made)
        done = {settings.home / one.source for one in made}
        new = [one.path for one in found.files if one.path in paths and one.path not in done]
        done |= {*new}
        ground_truth.check_reasons(settings, new)
        for refusal in found.refusals:
            if settings.new_gts / refusal.name in set(paths) - done:
                raise PipelineError(
                    f"{refusal.name} corrects nothing: it {refusal.what}; nothing was changed"
                )
        with recovery.unfinished_until_done(settings, "correct"):
            known.save()
            journal.append(*made)
            for one in made:
                ground_truth.finish_replacement(settings, one)
            back = [path.name for path in new if path.parent == settings.rejected_gts]
            if back:
                ground_truth.requeue(settings, back)
    lines = [records.replacement_text(one) for one in made]
    return lines + [f"{path.name} corrects nothing: it is new, and in new_gts/" for path in new]


def _check_one_for_each(made: Sequence[Replaced]) -> None:
    """Refuse two that take one place: only the person who named them knows which is right."""
    first: dict[tuple[str, str], str] = {}
    for one in made:
        name = Path(one.source).name
        other = first.setdefault((one.folder, one.name), name)
        if name != other:
            raise PipelineError(
                f"{other} and {name} take the place of {one.folder}/{one.name} both; name one of "
                "them; nothing was changed"
            )


def _find(settings: Settings, name: str) -> Path:
    problem = ground_truth.rejected_problem(settings)
    if problem:
        raise PipelineError(problem)
    folders = settings.rejected_gts, settings.new_gts
    name = name_meant(name, folders)
    for folder in folders:
        path = folder / name
        if path.name == name and path.is_file() and not path.is_symlink():
            return path
    raise PipelineError(f"there is no {name!r} in new_gts/rejected/ or new_gts/")


COMMAND = Command("correct", "let corrected recordings take the old ones' place", _add_flags, _work)
