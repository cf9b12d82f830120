"""Intake: a recording is itself, however it is saved; and nobody inverts what is trained on.

`resaved` holds the ways to save a recording again and what each must be called.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import DOMAINS, Domain, both_modules
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from resaved import (
    BAD,
    COLUMNS,
    DUPLICATE,
    MIXES,
    NEW,
    PART,
    WITHDRAWN,
    Way,
    after,
    apply,
    cells,
    first_half,
    joined,
    lines_ended,
    outcomes,
    relabelled,
    saved,
    second_half,
    ways_of,
    where_gone,
)
from sample_gts import make_recording
from test_files import GOOD_NAMES, TRAPS, everything_in, python_process

import train_classification_model as stems
from retraining import ground_truth, intake
from retraining.errors import TryLaterError
from retraining.files import hash_bytes, hash_file, waiting_names
from retraining.ground_truth import KNOWN, PARKED, Refusal
from retraining.intake import Intake, Learnt
from retraining.journal import COPY, CORRECTION, WHOLE, Journal, Withdrawn
from retraining.known_recordings import FILE_NAME, KnownRecordings
from retraining.settings import Settings
from retraining.training import Training, load_training_module

DAY_SECONDS = 86_400


def known_in(settings: Settings, training: Any) -> KnownRecordings:
    """Return what a home knows, all of used_gts/ among it."""
    paths = [settings.used_gts / name for name in waiting_names(settings.used_gts)]
    return intake.known_files(settings, training, paths)


@dataclass
class Place:
    """A home without a registry: folders, what it knows and what it remembers.

    Parameters
    ----------
    settings, training
        Of the home and its module.
    domain
        Key of `DOMAINS`.
    learnt
        What production and the version before it learnt.
    """

    settings: Settings
    training: Training
    domain: str
    learnt: Learnt = field(default_factory=Learnt)

    @property
    def columns(self) -> Any:
        """How its files call what is in them."""
        return COLUMNS[self.domain]

    @property
    def journal(self) -> Journal:
        """What it remembers."""
        return Journal(self.settings.home)

    def use(self, contents: Mapping[str, bytes]) -> None:
        """Put files into used_gts/."""
        for name, content in contents.items():
            (self.settings.used_gts / name).write_bytes(content)

    def drop(self, name: str, content: bytes) -> Path:
        """Put a file into new_gts/, younger than those that are there."""
        path = self.settings.new_gts / name
        path.write_bytes(content)
        n_waiting = len(waiting_names(self.settings.new_gts))
        os.utime(path, (1.8e9 + n_waiting, 1.8e9 + n_waiting))
        return path

    def empty(self, folder: Path) -> None:
        """Remove the files of a folder."""
        for name in waiting_names(folder):
            (folder / name).unlink()

    def take_in(self, contents: Mapping[str, bytes] | None = None, **values: Any) -> Intake:
        """Say what new_gts/ holds, with these files in it; nothing is moved."""
        for name, content in (contents or {}).items():
            self.drop(name, content)
        known = KnownRecordings.of(self.settings.home, self.training)
        memory = self.journal.read()
        return intake.take_in(self.settings, self.training, known, memory, self.learnt, **values)

    def become(self, contents: Mapping[str, bytes]) -> dict[str, str]:
        """Return what files are, and remove them again."""
        told = outcomes(self.take_in(contents))
        self.empty(self.settings.new_gts)
        return told

    def night(self, contents: Mapping[str, bytes], *, archived: bool = True) -> Intake:
        """Do with the files what a cycle does; by default it also learns the new ones."""
        found = self.take_in(contents)
        assert found.known is not None
        found.known.save()
        self.journal.append(*found.arrivals, *found.replacements)
        ground_truth.reject(self.settings, found.refusals)
        ground_truth.archive_learnt(self.settings, found.learnt, self.contents(found.learnt))
        for one in found.replacements:
            ground_truth.finish_replacement(self.settings, one)
        if archived:
            names = [one.name for one in found.files]
            ground_truth.archive_learnt(self.settings, names, self.contents(names))
        return found

    def contents(self, names: Iterable[str]) -> set[str]:
        """Return the SHA-256 of files in new_gts/."""
        return {hash_file(self.settings.new_gts / name) for name in names}

    def lose_files(self) -> None:
        """Let production have learnt what used_gts/ holds, and lose the files."""
        names = ground_truth.hashes_in(self.settings.used_gts)
        known = known_in(self.settings, self.training)
        known.save()
        self.learnt = Learnt(names)
        self.empty(self.settings.used_gts)

    def withdraw_all(self, *, forget: bool) -> None:
        """Withdraw and delete all files; `forget` also what the home knows of recordings."""
        known = known_in(self.settings, self.training)
        entries = []
        for sha256, name in ground_truth.hashes_in(self.settings.used_gts).items():
            row = known.row(sha256)
            assert row is not None
            text = base64.b64encode(row.tobytes()).decode()
            entries.append(
                Withdrawn(sha256, text, [], "used_gts", name, "", "blurred", "me", "2026-06-01")
            )
        self.journal.append(*entries)
        self.empty(self.settings.used_gts)
        if forget:
            (self.settings.home / FILE_NAME).unlink(missing_ok=True)
        else:
            known.save()


def make_place(home: Path, domain: str = "stems") -> Place:
    """Return an empty home."""
    for name in ("new_gts", "used_gts"):
        (home / name).mkdir(parents=True)
    settings = Settings(home=home, **DOMAINS[domain].settings)  # type: ignore[arg-type]
    return Place(settings, load_training_module(settings), domain)


@pytest.fixture
def place(tmp_path: Path, domain: Domain) -> Place:
    """Give an empty home, by default with the default training module."""
    (name,) = [name for name, one in DOMAINS.items() if one is domain]
    return make_place(tmp_path / "home", name)


@pytest.fixture
def settings(place: Place) -> Settings:
    """Give the settings of that home."""
    return place.settings


def recording(seed: int) -> bytes:
    """Return a small valid ground truth file."""
    return make_recording(seed, n_tracks=2).to_csv(index=False).encode()


def contents_of(
    domain: str, n: int, season: str = "old", n_tracks: int | None = None
) -> dict[str, bytes]:
    """Return different recordings of one season: name -> content."""
    if domain == "stems":
        tables = [make_recording(7000 + seed, season, n_tracks) for seed in range(n)]
    else:
        from make_samples import make_sample

        tables = [make_sample(7000 + seed, season) for seed in range(n)]
    return {f"{number}.csv": saved(table) for number, table in enumerate(tables, 1)}


@functools.cache
def _few_of(domain: str) -> dict[str, bytes]:
    return contents_of(domain, 4, n_tracks=12)


def few_of(domain: str) -> dict[str, bytes]:
    """Return some recordings that are quickly read."""
    return dict(_few_of(domain))


def real_recordings(folder: Path, n_smallest: int | None = None) -> dict[str, bytes]:
    """Return real recordings: name -> content."""
    by_size = sorted((folder / "gts").glob("*.csv"), key=lambda path: path.stat().st_size)
    return {path.name: path.read_bytes() for path in by_size[:n_smallest]}


def again(contents: Mapping[str, bytes], ways: Iterable[Way], domain: str) -> dict[str, bytes]:
    """Save recordings again, under other names."""
    ways = list(ways)
    return {
        f"again_{name}": apply(ways, content, COLUMNS[domain]) for name, content in contents.items()
    }


def turned(content: bytes, first: int, last: int) -> bytes:
    """Turn the labels of the tracks from `first` to before `last` over."""
    table = cells(content)
    codes, _ = pd.factorize(table["object_id"])
    chosen = (codes >= first) & (codes < last)
    other = table["ground_truth"].map(COLUMNS["stems"].others)
    return saved(table.assign(ground_truth=table["ground_truth"].where(~chosen, other)))


def taken_in(settings: Settings, trained_on: Mapping[str, str] | None = None) -> Intake:
    """Read new_gts/ with the default training module."""
    place = Place(settings, load_training_module(settings), "stems", Learnt(trained_on or {}))
    return place.take_in()


class TestFiles:
    """`take_in` of files whose bytes, names or kinds are odd."""

    def test_a_file_that_somebody_writes_is_left_for_the_next_run(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As long as another process has it open for writing, however long it pauses."""
        caplog.set_level(logging.INFO, "pipeline")
        for number in (1, 2):
            (settings.new_gts / f"{number}.csv").write_bytes(recording(number))
        write = "import sys; f = open(sys.argv[1], 'ab'); print('open', flush=True); input()"
        with python_process(write, settings.new_gts / "1.csv"):
            during = taken_in(settings)
        after = taken_in(settings)
        assert ([one.name for one in during.files], during.refusals) == (["2.csv"], ())
        assert [one.name for one in after.files] == ["1.csv", "2.csv"]
        assert "1.csv is still being written" in caplog.text

    def test_every_content_is_read_once_and_nothing_changes(self, settings: Settings) -> None:
        """Hash and rows come from the same bytes; files and times stay."""
        content = recording(1)
        (settings.new_gts / "a.csv").write_bytes(content)
        (settings.new_gts / "bad.csv").write_bytes(b"no,ground,truth\n1,2,3\n")
        before = [(path, path.stat().st_mtime_ns) for path in sorted(settings.home.rglob("*"))]
        intake = taken_in(settings)
        after = [(path, path.stat().st_mtime_ns) for path in sorted(settings.home.rglob("*"))]
        assert after == before
        assert [one.name for one in intake.files] == ["a.csv"]
        assert [one.name for one in intake.refusals] == ["bad.csv"]
        assert intake.files[0].sha256 == hash_bytes(content)
        assert len(intake.files[0].rows) == content.count(b"\n") - 1
        assert intake.files[0].n_rows == len(intake.files[0].rows)

    def test_a_large_batch_is_not_kept_in_memory_but_read_again(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only what fits is kept; the rows are the same."""
        for number in (1, 2):
            (settings.new_gts / f"{number}.csv").write_bytes(recording(number))
        kept = taken_in(settings).files
        monkeypatch.setattr(intake, "KEPT_ROWS", kept[0].n_rows)
        parsed = []
        parse = stems.parse_ground_truth

        def note(content: bytes, name: str) -> Any:
            parsed.append(name)
            return parse(content, name)

        files = taken_in(settings).files
        monkeypatch.setattr(stems, "parse_ground_truth", note)
        for one, other in zip(kept, files, strict=True):
            assert one.rows.equals(other.rows)
        assert parsed == ["2.csv"]

    @pytest.mark.parametrize("change", ["written", "removed", "a link"])
    def test_a_file_of_a_large_batch_that_changed_ends_the_cycle(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        """What is scored must be what was taken in."""
        monkeypatch.setattr(intake, "KEPT_ROWS", 0)
        path = settings.new_gts / "1.csv"
        path.write_bytes(recording(1))
        (one,) = taken_in(settings).files
        path.unlink()
        if change == "written":
            path.write_bytes(recording(2))
        elif change == "a link":
            path.symlink_to("elsewhere.csv")
        with pytest.raises(TryLaterError, match=r"1\.csv changed while the cycle ran"):
            _ = one.rows

    @pytest.mark.parametrize("where", ["new_gts", "used_gts"])
    def test_the_same_bytes_are_refused_and_the_twin_named(
        self, settings: Settings, where: str
    ) -> None:
        """By content, whatever the name: a recording is never trained on twice."""
        content = recording(1)
        (settings.new_gts / "twin.csv").write_bytes(content)
        (settings.home / where / "first.csv").write_bytes(content)
        found = taken_in(settings)
        twin = f"{where}/first.csv"
        assert found.refusals == (
            Refusal(
                "twin.csv",
                f"is a duplicate: same content as {twin}",
                f"delete it: {twin} holds the same bytes",
                KNOWN,
            ),
        )
        assert [one.name for one in found.files] == (["first.csv"] if where == "new_gts" else [])

    def test_an_invalid_twin_is_refused_for_what_is_wrong_with_it(self, settings: Settings) -> None:
        """Two copies of a bad file are two bad files."""
        for name in ("a.csv", "b.csv"):
            (settings.new_gts / name).write_bytes(b"")
        whats = [one.what for one in taken_in(settings).refusals]
        assert whats == ["is empty", "is empty"]

    @pytest.mark.parametrize(
        ("make", "what"),
        [
            (lambda path: path.symlink_to("good.csv"), "is a symbolic link"),
            (lambda path: path.symlink_to("nowhere"), "is a symbolic link"),
            (os.mkfifo, "is not a regular file"),
            (Path.mkdir, "is not a regular file"),
            (lambda path: path.write_bytes(b"x" * 100_001), "is larger than 0.1 MB"),
        ],
        ids=["link", "dangling link", "pipe", "folder", "too large"],
    )
    def test_what_is_no_plain_file_is_refused_and_moved_as_it_is(
        self, settings: Settings, make: Callable[[Path], object], what: str
    ) -> None:
        """Nothing is followed or waited for; the rest of the batch goes on."""
        settings = Settings(home=settings.home, max_file_mb=0.1)
        (settings.new_gts / "good.csv").write_bytes(recording(1))
        make(settings.new_gts / "odd.csv")
        kind = stat.S_IFMT((settings.new_gts / "odd.csv").lstat().st_mode)
        intake = taken_in(settings)
        ground_truth.reject(settings, intake.refusals)
        assert [one.name for one in intake.files] == ["good.csv"]
        assert [(one.name, one.what) for one in intake.refusals] == [("odd.csv", what)]
        assert waiting_names(settings.new_gts) == ["good.csv"]
        assert stat.S_IFMT((settings.rejected_gts / "odd.csv").lstat().st_mode) == kind

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_an_unreadable_file_is_refused(self, settings: Settings) -> None:
        """A file of another user does not stop the night."""
        (settings.new_gts / "a.csv").write_bytes(recording(1))
        (settings.new_gts / "a.csv").chmod(0)
        (refusal,) = taken_in(settings).refusals
        assert refusal.what == "is not readable"

    @pytest.mark.parametrize(
        "name", [b"caf\xe9.csv", b"a" * 251 + b".csv", "ü".encode() * 125 + b".csv"]
    )
    def test_no_name_stops_the_night(self, settings: Settings, name: bytes) -> None:
        """A name that is not UTF-8, or as long as the filesystem allows, can be rejected."""
        path = settings.new_gts / os.fsdecode(name)
        path.write_bytes(b"bad")
        ground_truth.reject(settings, taken_in(settings).refusals)
        (kept,) = ground_truth.rejected_names(settings)
        reason = settings.rejected_gts / f"{kept}{ground_truth.REASON_SUFFIX}"
        assert (settings.rejected_gts / kept).read_bytes() == b"bad"
        assert kept.endswith(".csv")
        assert json.loads(reason.read_bytes())["file"] == path.name
        assert waiting_names(settings.new_gts) == []

    def test_a_name_that_is_not_utf8_is_the_reason(self, settings: Settings) -> None:
        """No table, run or terminal could show it."""
        (settings.new_gts / os.fsdecode(b"caf\xe9.csv")).write_bytes(recording(1))
        (refusal,) = taken_in(settings).refusals
        assert (refusal.what, refusal.remedy) == ("has a name that is not UTF-8", "rename it")

    @pytest.mark.parametrize(("name", "reason"), TRAPS.items())
    def test_a_name_that_is_a_trap_is_refused(
        self, settings: Settings, name: str, reason: str
    ) -> None:
        """Somebody would sooner or later type it in a shell or read it in a log."""
        (settings.new_gts / name).write_bytes(recording(1))
        intake = taken_in(settings)
        assert reason in intake.refusals[0].what
        ground_truth.reject(settings, intake.refusals)
        assert ground_truth.rejected_names(settings) == [name]

    @pytest.mark.parametrize("name", GOOD_NAMES)
    def test_a_good_file_is_taken_in_whatever_its_name(self, settings: Settings, name: str) -> None:
        """A name is data, never an option, a pattern or a line."""
        (settings.new_gts / name).write_bytes(recording(1))
        assert [one.name for one in taken_in(settings).files] == [name]

    def test_the_fingerprint_depends_on_contents_alone(self, settings: Settings) -> None:
        """Not on names or order; another content gives another fingerprint."""

        def fingerprint(contents: dict[str, int]) -> str:
            for path in settings.new_gts.iterdir():
                path.unlink()
            for name, seed in contents.items():
                (settings.new_gts / name).write_bytes(recording(seed))
            return taken_in(settings).fingerprint

        first = fingerprint({"a.csv": 1, "b.csv": 2})
        assert fingerprint({"x.csv": 2, "y.csv": 1}) == first
        assert len({first, fingerprint({"a.csv": 1}), fingerprint({"a.csv": 1, "b.csv": 3})}) == 3


CASES = [
    pytest.param(domain, way, id=f"{domain}-{way}") for domain in DOMAINS for way in ways_of(domain)
]


@pytest.fixture
def all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any number of corrections be made in a night, so that a batch may hold many."""
    monkeypatch.setattr(intake, "CORRECTIONS_A_NIGHT", 1000)


def refusal_of(found: Intake, name: str) -> Refusal:
    """Return why a file was refused."""
    (refusal,) = [one for one in found.refusals if one.name == name]
    return refusal


@pytest.mark.usefixtures("all_at_once")
class TestSavedAgain:
    """Whatever is made of a recording, it is told what it is, and whose."""

    @pytest.mark.parametrize(("domain_name", "way"), CASES)
    def test_against_used_gts_and_all_that_stands_for_it(
        self, tmp_path: Path, domain_name: str, way: Way
    ) -> None:
        """Beside the file, without it by its sketch, and when it was withdrawn."""
        place = make_place(tmp_path / "home", domain_name)
        contents = few_of(domain_name)
        place.use(contents)
        copies = again(contents, [way], domain_name)
        differ = {name: one for name, one in copies.items() if one != contents[name[6:]]}
        assert place.become(copies) == dict.fromkeys(copies, way.becomes)
        place.lose_files()
        assert place.become(differ) == dict.fromkeys(differ, where_gone(way.becomes))
        place.learnt = Learnt()
        place.use(contents)
        place.withdraw_all(forget=True)
        assert place.become(copies) == dict.fromkeys(copies, WITHDRAWN)

    @pytest.mark.parametrize(("domain_name", "way"), CASES)
    def test_within_one_batch(self, tmp_path: Path, domain_name: str, way: Way) -> None:
        """One of the copies counts; of two that contradict each other, none."""
        place = make_place(tmp_path / "home", domain_name)
        contents = few_of(domain_name)
        copies = again(contents, [way], domain_name)
        first = PARKED if way.becomes == PARKED else NEW
        told = place.become(contents | copies)
        assert {name: told[name] for name in copies} == dict.fromkeys(copies, way.becomes)
        if way.becomes != CORRECTION:
            assert {name: told[name] for name in contents} == dict.fromkeys(contents, first)
        counted = [one for one in told.values() if one in (NEW, CORRECTION)]
        assert len(counted) == (0 if first == PARKED else len(contents))

    @pytest.mark.parametrize("way", ways_of("stems"), ids=str)
    def test_real_recordings(self, tmp_path: Path, shared_folder: Path, way: Way) -> None:
        """The three smallest; `slow` tests do it for all of them."""
        place = make_place(tmp_path / "home")
        contents = real_recordings(shared_folder, 3)
        place.use(contents)
        copies = again(contents, [way], "stems")
        assert place.become(copies) == dict.fromkeys(copies, way.becomes)

    @pytest.mark.slow
    @pytest.mark.sampled(0.5)
    @pytest.mark.parametrize("where", ["at hand", "gone"])
    def test_all_real_recordings_in_all_ways(
        self,
        tmp_path: Path,
        shared_folder: Path,
        where: str,
        figure: Callable[[str, Any], None],
    ) -> None:
        """As a batch in each way, and every one is told by its own name."""
        place = make_place(tmp_path / "home")
        contents = real_recordings(shared_folder)
        place.use(contents)
        known_in(place.settings, place.training).save()
        if where == "gone":
            place.lose_files()
        n_told = 0
        for way in ways_of("stems"):
            copies = again(contents, [way], "stems")
            copies = {name: one for name, one in copies.items() if one != contents[name[6:]]}
            expected = way.becomes if where == "at hand" else where_gone(way.becomes)
            found = place.take_in(copies)
            place.empty(place.settings.new_gts)
            assert outcomes(found) == dict.fromkeys(copies, expected), way
            for one in found.refusals:
                assert f" {one.name[6:]}" in one.what.replace("/", " "), way
            n_told += len(copies)
        figure(f"real recordings saved again and told ({where})", n_told)

    @both_modules
    @pytest.mark.parametrize(("name", "mix"), MIXES, ids=[name for name, _ in MIXES])
    def test_a_mixture_of_known_recordings(
        self, place: Place, name: str, mix: Callable[..., bytes]
    ) -> None:
        """Refused with the names and the shares of those in it."""
        contents = few_of(place.domain)
        place.use(contents)
        mixture = mix(contents["1.csv"], contents["2.csv"], place.columns)
        refusal = refusal_of(place.take_in({"mixed.csv": mixture}), "mixed.csv")
        assert refusal.what.startswith("is mixed with known recordings: of its observations ")
        assert "used_gts/1.csv" in refusal.what
        assert "used_gts/2.csv" in refusal.what
        assert refusal.remedy == "give one whole recording per file"

    @both_modules
    def test_half_of_a_known_recording_with_a_new_one_is_no_new_one(self, place: Place) -> None:
        """It would be scored by a model that learnt a part of it."""
        contents = few_of(place.domain)
        new = contents.pop("4.csv")
        place.use(contents)
        half = first_half(contents["1.csv"], place.columns)
        mixture = joined(half, new, place.columns)
        found = place.take_in({"mixed.csv": mixture, "4.csv": new})
        assert outcomes(found)["4.csv"] == NEW
        assert "used_gts/1.csv" in refusal_of(found, "mixed.csv").what

    @both_modules
    def test_a_whole_takes_the_place_of_its_part(self, place: Place) -> None:
        """Which nobody can tell from a known recording with a new one below."""
        contents = few_of(place.domain)
        parts = {name: first_half(one, place.columns) for name, one in contents.items()}
        place.use(parts)
        wholes = {f"whole_{name}": one for name, one in contents.items()}
        found = place.take_in(wholes)
        assert outcomes(found) == dict.fromkeys(wholes, WHOLE)
        assert {one.name for one in found.replacements} == set(parts)
        assert {one.folder for one in found.replacements} == {"used_gts"}

    @both_modules
    @pytest.mark.parametrize("order", [1, -1], ids=["part first", "whole first"])
    def test_a_whole_and_its_part_in_one_batch_are_the_whole(
        self, place: Place, order: int
    ) -> None:
        """Whichever came first."""
        contents = few_of(place.domain)
        one = contents.pop("1.csv")
        place.use(contents)
        files = [("part.csv", first_half(one, place.columns)), ("whole.csv", one)][::order]
        found = place.take_in(dict(files))
        assert [file.path.name for file in found.files] == ["whole.csv"]
        assert found.files[0].n_rows == len(cells(one))


def composed(domain: str) -> st.SearchStrategy[list[Way]]:
    """Return two to five ways one after the other, of which one at most changes what it is.

    Whole recordings are written twice at the end only: half of a doubled one is a whole.
    """
    plain = [way for way in ways_of(domain) if way.becomes == DUPLICATE]
    others = [way for way in ways_of(domain) if way.becomes != DUPLICATE]
    twice = [way for way in plain if way.name == "written twice"]
    once = st.sampled_from([way for way in plain if way not in twice])
    other = st.sampled_from(others).map(lambda way: [way])
    one_at_most: st.SearchStrategy[list[Way]] = st.one_of(st.just([]), other)
    return st.tuples(st.lists(once, max_size=2), one_at_most, once, st.booleans()).map(
        lambda drawn: [*drawn[0], *drawn[1], drawn[2], *(twice if drawn[3] else ())]
    )


class TestComposed:
    """Ways one after the other."""

    @pytest.mark.parametrize("domain_name", list(DOMAINS))
    def test_what_is_saved_again_and_again_is_told(
        self, tmp_path_factory: pytest.TempPathFactory, domain_name: str
    ) -> None:
        """As what it is: the last way does not hide the ones before."""
        place = make_place(tmp_path_factory.mktemp("composed") / "home", domain_name)
        contents = few_of(domain_name)
        place.use(contents)
        known_in(place.settings, place.training).save()

        @given(ways=composed(domain_name), name=st.sampled_from(sorted(contents)))
        @hypothesis_settings(
            max_examples=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        )
        def check(ways: list[Way], name: str) -> None:
            copy = apply(ways, contents[name], place.columns)
            (told,) = place.become({"again.csv": copy}).values()
            expected = {after(ways)}
            if domain_name == "grain" and any(way.is_rounded for way in ways):
                expected |= {PARKED} if CORRECTION in expected else set()
            assert told in expected

        check()


class TestDifferentRecordings:
    """No two of them are ever called one."""

    @pytest.mark.parametrize("domain_name", list(DOMAINS))
    def test_of_one_season(self, tmp_path: Path, domain_name: str) -> None:
        """Forty that are alike: half of them in used_gts/, half in one batch."""
        place = make_place(tmp_path / "home", domain_name)
        contents = contents_of(domain_name, 40, "new")
        names = sorted(contents)
        place.use({name: contents[name] for name in names[:20]})
        new = {name: contents[name] for name in names[20:]}
        found = place.take_in(new)
        assert outcomes(found) == dict.fromkeys(new, NEW)
        assert not any(one.related for one in found.files)

    def test_real_ones(self, tmp_path: Path, shared_folder: Path) -> None:
        """All pairs of them: each is new beside all the others."""
        place = make_place(tmp_path / "home")
        contents = real_recordings(shared_folder)
        assert place.become(contents) == dict.fromkeys(contents, NEW)
        paths = [place.drop(name, content) for name, content in contents.items()]
        known = intake.known_files(place.settings, place.training, paths)
        shas = [hash_bytes(content) for content in contents.values()]
        assert max(pair.containment for pair in known.pairs(shas, shas, least=0.0)) < 0.05

    @pytest.mark.parametrize("half", [0, 1])
    def test_real_ones_beside_what_is_gone(
        self, tmp_path: Path, shared_folder: Path, half: int
    ) -> None:
        """Half of them known by their sketches alone, short and long ones: the rest is new."""
        place = make_place(tmp_path / "home")
        contents = real_recordings(shared_folder)
        names = list(contents)
        place.use({name: contents[name] for name in names[half::2]})
        place.lose_files()
        new = {name: contents[name] for name in names[1 - half :: 2]}
        assert place.become(new) == dict.fromkeys(new, NEW)

    @pytest.mark.parametrize("n_used", [0, 2, 20])
    def test_of_coarse_values(self, tmp_path: Path, n_used: int) -> None:
        """Grain in whole numbers shares rows by chance: only equal contents are called one."""
        place = make_place(tmp_path / "home", "grain")
        contents = contents_of("grain", 40, "new")
        contents = {
            name: saved(pd.read_csv(io.BytesIO(one)).round(0)) for name, one in contents.items()
        }
        names = sorted(contents)
        place.use({name: contents[name] for name in names[:n_used]})
        new = {name: contents[name] for name in names[n_used:]}
        assert place.become(new) == dict.fromkeys(new, NEW)
        shuffle = [way for way in ways_of("grain") if way.name == "rows shuffled"]
        correct = [way for way in ways_of("grain") if way.name == "one label corrected"]
        used = {name: contents[name] for name in names[:3] if name in names[:n_used]}
        copies, corrected = again(used, shuffle, "grain"), again(used, correct, "grain")
        assert place.become(copies) == dict.fromkeys(copies, DUPLICATE)
        assert place.become(corrected) == dict.fromkeys(corrected, CORRECTION)

    def test_a_coarse_season_after_a_fine_one(self, tmp_path: Path) -> None:
        """What came before says nothing of how much the new ones share by chance."""
        place = make_place(tmp_path / "home", "grain")
        place.use(contents_of("grain", 10, "old"))
        coarse = {
            f"coarse_{name}": saved(pd.read_csv(io.BytesIO(one)).round(0))
            for name, one in contents_of("grain", 10, "new").items()
        }
        assert place.become(coarse) == dict.fromkeys(coarse, NEW)

    def test_without_any_observation_nothing_is_compared(self, place: Place) -> None:
        """Files of labels alone, without a place in them, are not parts of each other."""
        tables = [make_recording(seed, n_tracks=3 + seed) for seed in (1, 2)]
        contents = {
            f"{number}.csv": saved(one.assign(centroids_x=np.nan, centroids_y=np.nan))
            for number, one in enumerate(tables)
        }
        place.use({"used.csv": contents.pop("0.csv")})
        assert place.become(contents) == {"1.csv": NEW}
        assert outcomes(place.take_in({"empty.csv": b"", "more.csv": b"\n"})) == {
            "empty.csv": BAD,
            "more.csv": BAD,
        }


class TestWhoeverMayDropFiles:
    """Can neither invert what is trained on, nor bring old labels back, nor lose a file."""

    TRACKS = 50

    @pytest.fixture
    def truth(self, place: Place) -> bytes:
        """Give a recording that is used, beside others."""
        content = contents_of("stems", 1, n_tracks=self.TRACKS)["1.csv"]
        place.night({"8.csv": content} | {f"other_{n}.csv": recording(n) for n in range(3)})
        return content

    def used(self, place: Place) -> bytes:
        """Return what stands for that recording now."""
        return (place.settings.used_gts / "8.csv").read_bytes()

    def test_inverted_labels_are_parked(self, place: Place, truth: bytes) -> None:
        """Used stays what it was; the file waits for a person, who is told how."""
        found = place.night({"8.csv": turned(truth, 0, self.TRACKS)})
        refusal = refusal_of(found, "8.csv")
        assert (refusal.kind, refusal.what) == (
            PARKED,
            "contradicts 100 % of the labels of used_gts/8.csv",
        )
        assert refusal.remedy == "if it is right: python pipeline_orchestrator.py correct 8.csv"
        assert self.used(place) == truth
        assert ground_truth.rejected_files(place.settings) == (refusal,)

    @pytest.mark.parametrize(("n_turned", "becomes"), [(10, CORRECTION), (11, PARKED)])
    def test_a_fifth_of_the_labels_is_a_correction_and_one_more_is_parked(
        self, place: Place, truth: bytes, n_turned: int, becomes: str
    ) -> None:
        """Ten of fifty tracks."""
        found = place.take_in({"8.csv": turned(truth, 0, n_turned)})
        assert outcomes(found) == {"8.csv": becomes}

    @pytest.mark.parametrize(
        ("column", "becomes"), [("ground_truth", PARKED), ("counted", PARKED), ("", DUPLICATE)]
    )
    def test_objects_that_nobody_counted_hide_no_labels(
        self, place: Place, column: str, becomes: str
    ) -> None:
        """A fifth is one of what is learnt; nor are they made to count without being asked."""
        table = cells(contents_of("stems", 1, n_tracks=100)["1.csv"])
        codes, _ = pd.factorize(table["object_id"])
        table["counted"] = np.where(codes < 20, "True", "False")
        place.use({"8.csv": saved(table), "other.csv": recording(5)})
        if column:
            chosen = codes < 8 if column == "ground_truth" else codes >= 90
            others = table[column].map(COLUMNS["stems"].others)
            table[column] = table[column].where(~chosen, others)
        assert outcomes(place.take_in({"8.csv": saved(table, quoting=1)})) == {"8.csv": becomes}

    def test_small_steps_do_not_add_up(self, place: Place, truth: bytes) -> None:
        """A fifth of the labels each night is compared with what a person stood for."""
        step = self.TRACKS // 5 - 1
        first = turned(truth, 0, step)
        assert outcomes(place.night({"8.csv": first})) == {"8.csv": CORRECTION}
        assert self.used(place) == first
        found = place.night({"8.csv": turned(truth, 0, 2 * step)})
        assert refusal_of(found, "8.csv").what.startswith("contradicts 36 % of the labels")
        assert self.used(place) == first

    def test_small_steps_by_way_of_a_larger_file_do_not_add_up(
        self, place: Place, truth: bytes
    ) -> None:
        """Many objects more do not make a fifth of the old ones' labels a small share."""
        more = contents_of("stems", 2, n_tracks=4 * self.TRACKS)["2.csv"]
        assert outcomes(place.night({"8.csv": joined(truth, more, place.columns)})) == {
            "8.csv": WHOLE
        }
        lie = joined(turned(truth, 0, self.TRACKS), more, place.columns)
        assert outcomes(place.night({"8.csv": lie})) == {"8.csv": PARKED}

    def test_tracks_cut_into_pieces_do_not_thin_the_lie_out(
        self, place: Place, truth: bytes
    ) -> None:
        """Each row of what is left as it was is an object of its own."""
        table = cells(turned(truth, 0, self.TRACKS // 2))
        codes, _ = pd.factorize(table["object_id"])
        rows = np.arange(len(table)) + 1_000_000
        numbers = np.where(codes < self.TRACKS // 2, codes, rows).astype(str)
        found = place.take_in({"8.csv": saved(table.assign(object_id=numbers))})
        assert outcomes(found) == {"8.csv": PARKED}

    def test_tracks_moved_by_a_pixel_do_not_hide_the_lie(self, place: Place, truth: bytes) -> None:
        """What is not found again is not taken as agreed."""
        table = cells(turned(truth, 0, self.TRACKS // 4))
        codes, _ = pd.factorize(table["object_id"])
        x = table["centroids_x"].astype(float) + np.where(codes < self.TRACKS // 4, 1, 0)
        found = place.take_in({"8.csv": saved(table.assign(centroids_x=x))})
        assert outcomes(found) == {"8.csv": PARKED}

    def test_a_recording_that_says_both_corrects_nothing(self, place: Place, truth: bytes) -> None:
        """Every track twice, once as a stem and once as none."""
        both = joined(truth, turned(truth, 0, self.TRACKS), place.columns)
        assert outcomes(place.take_in({"8.csv": both}))["8.csv"] in (DUPLICATE, PARKED)

    @pytest.mark.parametrize(("n_turned", "becomes"), [(10, CORRECTION), (18, PARKED)])
    def test_small_steps_of_one_night_do_not_add_up_either(
        self, place: Place, truth: bytes, n_turned: int, becomes: str
    ) -> None:
        """The last one counts, if all of them together change no more than a fifth."""
        steps = {"a.csv": turned(truth, 0, 9), "b.csv": turned(truth, 0, n_turned)}
        found = place.night(steps)
        assert outcomes(found) == {"a.csv": CORRECTION, "b.csv": becomes}
        stands = "a.csv" if becomes == PARKED else "b.csv"
        assert self.used(place) == steps[stands]
        kept = {truth} if becomes == PARKED else {truth, steps["a.csv"]}
        assert set(everything_in(place.settings.replaced_gts).values()) == kept
        assert waiting_names(place.settings.new_gts) == []

    def test_old_labels_do_not_come_back_with_the_correction(
        self, place: Place, truth: bytes
    ) -> None:
        """Dropped after it, the same night."""
        corrected = turned(truth, 0, 2)
        found = place.night({"a.csv": corrected, "b.csv": lines_ended(truth, b"\r\n")})
        assert outcomes(found) == {"a.csv": CORRECTION, "b.csv": PARKED}
        assert self.used(place) == corrected

    def test_corrections_of_parked_corrections_are_parked_too(self, place: Place) -> None:
        """Of four waiting files, two corrections of each in one night: the files stay."""
        contents = contents_of("stems", 4, n_tracks=10)
        place.night(contents, archived=False)
        steps = {f"{n}_{name}": turned(one, 0, n) for name, one in contents.items() for n in (1, 2)}
        found = place.night(steps, archived=False)
        assert [one.kind for one in found.refusals] == [PARKED] * 8
        assert {one.sha256 for one in found.files} == {hash_bytes(one) for one in contents.values()}
        assert everything_in(place.settings.new_gts).items() >= contents.items()

    @pytest.mark.parametrize(("n_files", "n_made"), [(3, 3), (4, 0)])
    def test_four_corrections_in_a_night_are_parked_and_three_are_made(
        self, place: Place, n_files: int, n_made: int
    ) -> None:
        """Nobody stands for so many."""
        contents = contents_of("stems", n_files, n_tracks=10)
        place.night(contents)
        found = place.night({name: turned(one, 0, 1) for name, one in contents.items()})
        assert len(found.replacements) == n_made
        assert [one.kind for one in found.refusals] == [PARKED] * (n_files - n_made)
        used = everything_in(place.settings.used_gts)
        assert sum(used[name] == one for name, one in contents.items()) == n_files - n_made

    def test_a_fourth_correction_the_same_evening_is_parked(self, place: Place) -> None:
        """Several runs of one day are one night."""
        contents = contents_of("stems", 4, n_tracks=10)
        place.night(contents)
        corrected = {name: turned(one, 0, 1) for name, one in contents.items()}
        last = corrected.pop("4.csv")
        assert len(place.night(corrected).replacements) == 3
        refusal = refusal_of(place.take_in({"4.csv": last}), "4.csv")
        assert refusal.kind == PARKED
        assert "one of 4 corrections in a night; 3 are made without a person" in refusal.what

    def test_a_person_may_correct_any_number_of_labels(self, place: Place, truth: bytes) -> None:
        """Parked or waiting: who names a file stands for it, and for it alone."""
        inverted = turned(truth, 0, self.TRACKS)
        place.night({"8.csv": inverted})
        parked = place.settings.rejected_gts / "8.csv"
        found = place.take_in(stood_for=[parked])
        (made,) = found.replacements
        assert (made.by_person, made.labels_changed, made.reason) == (True, 1.0, CORRECTION)
        assert (made.source, made.folder, made.name) == (
            "new_gts/rejected/8.csv",
            "used_gts",
            "8.csv",
        )

    def test_the_old_version_dropped_again_does_not_bring_old_labels_back(
        self, place: Place, truth: bytes
    ) -> None:
        """In the very bytes, and saved again, also when production learnt it."""
        corrected = turned(truth, 0, 2)
        place.night({"8.csv": corrected})
        place.learnt = Learnt({hash_bytes(truth): "8.csv"})
        for copy in (truth, lines_ended(truth, b"\r\n")):
            found = place.night({"old.csv": copy})
            (refusal,) = found.refusals
            assert refusal.kind == PARKED
            assert "had before it was corrected" in refusal.what
            assert (found.files, found.learnt, found.replacements) == ((), (), ())
        assert self.used(place) == corrected

    def test_old_labels_stay_away_when_all_that_is_kept_of_them_is_lost(
        self, place: Place, truth: bytes
    ) -> None:
        """Without replaced/ and sketches no night fails, and a fifth is still the limit."""
        place.night({"8.csv": turned(truth, 0, 9)})
        place.empty(place.settings.replaced_gts)
        (place.settings.home / FILE_NAME).unlink()
        assert outcomes(place.take_in({"old.csv": truth})) == {"old.csv": PARKED}

    def test_a_part_of_old_does_not_come_back_beside_its_whole(
        self, place: Place, truth: bytes
    ) -> None:
        """Production learnt the part, whose place the whole took: it is not archived again."""
        part = first_half(truth, place.columns)
        (place.settings.used_gts / "8.csv").write_bytes(part)
        assert outcomes(place.night({"whole.csv": truth})) == {"whole.csv": WHOLE}
        place.learnt = Learnt({hash_bytes(part): "8.csv"})
        copies = {"a.csv": part, "b.csv": lines_ended(part, b"\r\n")}
        assert place.become(copies) == {"a.csv": PART, "b.csv": PART}

    def test_a_whole_with_inverted_labels_is_parked(self, place: Place, truth: bytes) -> None:
        """New rows do not buy other labels for the old ones."""
        (place.settings.used_gts / "8.csv").write_bytes(first_half(truth, place.columns))
        found = place.take_in({"8.csv": turned(truth, 0, self.TRACKS)})
        assert outcomes(found) == {"8.csv": PARKED}

    @pytest.mark.parametrize("order", [1, -1])
    def test_copies_of_one_night_that_contradict_each_other_are_all_parked(
        self, place: Place, order: int
    ) -> None:
        """Nobody knows which of them is right: two of one kind are no majority."""
        truth = contents_of("stems", 1, n_tracks=20)["1.csv"]
        lie = turned(truth, 0, 20)
        files = [("a.csv", truth), ("b.csv", lie), ("c.csv", lines_ended(lie, b"\r\n"))]
        found = place.take_in(dict(files[::order]))
        assert outcomes(found) == {
            "a.csv": PARKED,
            "b.csv": DUPLICATE if order < 0 else PARKED,
            "c.csv": PARKED,
        }
        assert found.files == ()

    def test_a_contradiction_of_a_file_that_waited_before_is_parked_alone(
        self, place: Place
    ) -> None:
        """Whoever was there first stays in the batch."""
        truth = contents_of("stems", 1, n_tracks=20)["1.csv"]
        place.night({"a.csv": truth}, archived=False)
        found = place.take_in({"b.csv": turned(truth, 0, 20)})
        assert outcomes(found) == {"a.csv": NEW, "b.csv": PARKED}

    def test_a_correction_of_a_waiting_file_takes_its_name_and_place(self, place: Place) -> None:
        """The batch holds the recording once, with the new labels."""
        truth = contents_of("stems", 1, n_tracks=20)["1.csv"]
        place.night({"a.csv": truth}, archived=False)
        corrected = turned(truth, 0, 2)
        found = place.night({"b.csv": corrected}, archived=False)
        (one,) = found.files
        assert (one.name, one.sha256) == ("a.csv", hash_bytes(corrected))
        assert set(one.rows["file"]) == {"a.csv"}
        assert everything_in(place.settings.new_gts) == {"a.csv": corrected}

    def test_wholes_and_parts_of_one_night_are_no_corrections(self, place: Place) -> None:
        """Four recordings that were dropped by halves first: nothing is parked."""
        contents = contents_of("stems", 4, n_tracks=12)
        parts = {f"0_{name}": first_half(one, place.columns) for name, one in contents.items()}
        found = place.take_in(parts | contents)
        assert len(found.files) == 4
        assert found.refusals == ()

    def test_corrections_of_corrections_in_one_night(self, place: Place) -> None:
        """The last one counts; each old one is kept under a name of its own."""
        truth = contents_of("stems", 1, n_tracks=20)["1.csv"]
        steps = {f"{n}.csv": turned(truth, 0, n) for n in range(4)}
        found = place.night(steps, archived=False)
        (one,) = found.files
        assert (one.name, one.sha256) == ("0.csv", hash_bytes(steps["3.csv"]))
        assert everything_in(place.settings.new_gts) == {"0.csv": steps["3.csv"]}
        kept = everything_in(place.settings.replaced_gts)
        assert kept == {
            step.kept_as: steps[f"{number}.csv"] for number, step in enumerate(found.replacements)
        }

    @pytest.mark.parametrize("is_used", [True, False], ids=["used", "gone"])
    def test_a_file_that_production_learnt_is_archived_where_it_is_nowhere_else(
        self, place: Place, truth: bytes, *, is_used: bool
    ) -> None:
        """It may be the only copy: it is never refused, whatever else is in the batch."""
        place.learnt = Learnt({hash_bytes(truth): "8.csv"})
        if not is_used:
            (place.settings.used_gts / "8.csv").unlink()
        copies = {"8.csv": truth, "copy.csv": lines_ended(truth, b"\r\n")}
        found = place.night(copies)
        assert found.learnt == (() if is_used else ("8.csv",))
        assert self.used(place) == truth
        if is_used:
            assert {one.what[:14] for one in found.refusals} == {"is a duplicate"}

    def test_what_production_learnt_comes_back_in_other_bytes(
        self, place: Place, truth: bytes
    ) -> None:
        """Restored under its name, or a free one where that is another recording's by now."""
        other = recording(77)
        place.learnt = Learnt({hash_bytes(truth): "8.csv"})
        copy = lines_ended(truth, b"\r\n")
        for before, name in (({}, "8.csv"), ({"8.csv": other}, "8-1.csv")):
            place.empty(place.settings.used_gts)
            place.use(before)
            assert outcomes(place.night({"copy.csv": copy})) == {"copy.csv": COPY}
            assert everything_in(place.settings.used_gts) == before | {name: copy}

    def test_a_tiny_piece_of_a_long_recording_is_a_part(self, place: Place) -> None:
        """Its sketch has nothing in common with that of the long one: both are read."""
        long = contents_of("stems", 1, n_tracks=200)["1.csv"]
        place.use({"long.csv": long} | {f"{n}.csv": recording(n) for n in range(3)})
        table = cells(long)
        pieces = {
            f"piece_{n}.csv": saved(table[start : start + 8])
            for n, start in enumerate(range(200, len(table) - 8, len(table) // 30))
        }
        assert place.become(pieces) == dict.fromkeys(pieces, PART)

    @both_modules
    def test_no_remedy_says_delete_unless_it_names_the_very_bytes(self, place: Place) -> None:
        """Where the identical copy is, is true after the files were moved, too."""
        contents = few_of(place.domain)
        one, two = contents.pop("1.csv"), contents.pop("2.csv")
        place.use(contents | {"1.csv": one})
        correct = relabelled(0.0)
        files = {
            "same_as_used.csv": one,
            "a_duplicate.csv": one + b"\n",
            "b_its_twin.csv": one + b"\n",
            "c_new.csv": two,
            "d_its_twin.csv": two,
            "e_part.csv": second_half(two, place.columns),
            "f_correction.csv": saved(correct(cells(contents["3.csv"]), place.columns)),
            "g_its_twin.csv": saved(correct(cells(contents["3.csv"]), place.columns)),
        }
        found = place.night(files, archived=False)
        advised = [one for one in found.refusals if "delete" in one.remedy]
        assert {one.name for one in advised} == {
            "same_as_used.csv",
            "d_its_twin.csv",
            "g_its_twin.csv",
        }
        for refusal in advised:
            place_named = refusal.remedy.removeprefix("delete it: ").partition(" ")[0]
            assert (place.settings.home / place_named).read_bytes() == files[refusal.name]


class TestVersions:
    """Which new recordings are no evidence for or against a version."""

    def test_a_part_of_what_the_version_before_learnt_is_new_but_no_evidence_for_it(
        self, place: Place
    ) -> None:
        """Probation compares with that one; production learnt nothing of it."""
        content = contents_of("stems", 1, n_tracks=20)["1.csv"]
        place.use({"1.csv": content})
        place.lose_files()
        sha256 = hash_bytes(content)
        place.learnt = Learnt({}, {sha256: "1.csv"})
        found = place.take_in(
            {"copy.csv": lines_ended(content, b"\r\n"), "other.csv": recording(5)}
        )
        copy, other = found.files
        assert (copy.was_learnt_as({sha256}), other.was_learnt_as({sha256})) == (True, False)
        assert copy.related == {sha256}


class TestArrivals:
    """The order of arrival is remembered, and decides which copy counts."""

    def test_each_content_arrives_once(self, place: Place) -> None:
        """At first all of used_gts/; later only what is new."""
        place.use({"used.csv": recording(1)})
        first = place.night({"a.csv": recording(2)}, archived=False)
        assert [one.name for one in first.arrivals] == ["used.csv", "a.csv"]
        second = place.night({"b.csv": recording(3)}, archived=False)
        assert [one.name for one in second.arrivals] == ["b.csv"]

    def test_the_first_that_arrived_counts_whatever_its_name_and_time(self, place: Place) -> None:
        """A copy that claims to be older changes nothing."""
        content = recording(1)
        place.night({"z.csv": content}, archived=False)
        copy = place.drop("a.csv", lines_ended(content, b"\r\n"))
        os.utime(copy, (0, 0))
        assert outcomes(place.take_in()) == {"z.csv": NEW, "a.csv": DUPLICATE}

    def test_a_sketch_is_kept_for_each_content(self, place: Place) -> None:
        """Also of refused ones: they are read again only when the code changes."""
        found = place.take_in({"a.csv": recording(1), "b.csv": recording(1) + b"\n"})
        assert found.known is not None
        maker = place.training.maker()
        for content in (recording(1), recording(1) + b"\n"):
            assert found.known.was_read_by(hash_bytes(content), maker)
