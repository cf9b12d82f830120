"""What a home knows of recordings: kept safely, and compared as if all of them were at hand."""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import OWN_MODEL
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from retraining.files import hash_bytes, read_sealed, write_sealed
from retraining.identity import AMBIGUOUS, SKETCH_SIZE, Observations
from retraining.journal import Journal
from retraining.known_recordings import (
    BLIND_RECORDINGS,
    FILE_NAME,
    ROW,
    KnownRecordings,
    exactly,
    remember_listed,
)
from retraining.marks import Triaged
from retraining.settings import Settings
from retraining.training import Training, load_training_module

MAKER = "code"


@pytest.fixture(scope="module")
def training() -> Training:
    """Give the default training module."""
    return load_training_module(Settings())


def name_of(number: int) -> str:
    """Return the SHA-256 of a made-up content."""
    return hash_bytes(str(number).encode())


def seen(values: Any, labels: Any = None, digest: str = "") -> Observations:
    """Return observations with these numbers as hashes."""
    values = np.asarray(values, dtype=np.uint64)
    said = np.full(len(values), 7) if labels is None else np.asarray(labels)
    order = np.argsort(values)
    return Observations(
        hashes=values[order],
        labels=said.astype(np.uint64)[order],
        objects=np.arange(len(values)),
        is_labelled=np.ones(len(values), dtype=bool),
        digest=digest or hash_bytes(values[order].tobytes())[:32],
        labels_digest=hash_bytes(said[order].tobytes())[:32],
    )


def random_values(random: np.random.Generator, n: int) -> np.ndarray:
    """Return hashes as a good hash function gives them."""
    return random.integers(1, 2**64, n, dtype=np.uint64)


def known_of(*found: Observations, has_identity: bool = True) -> KnownRecordings:
    """Return a home's knowledge of these, called `name_of(0)`, `name_of(1)` and so on."""
    known = KnownRecordings(Path("unused"), has_identity)
    known.add([(name_of(number), one) for number, one in enumerate(found)], MAKER)
    return known


@pytest.fixture
def filled(tmp_path: Path, training: Training) -> KnownRecordings:
    """Give what a home knows after it was kept once."""
    known = KnownRecordings.of(tmp_path, training)
    random = np.random.default_rng(1)
    known.add([(name_of(n), seen(random_values(random, 600))) for n in range(3)], MAKER)
    known.save()
    return known


class TestKept:
    """The file."""

    def test_it_comes_back_as_it_was(self, filled: KnownRecordings, training: Training) -> None:
        """Bit for bit, in a file that is its owner's alone."""
        path = filled.path
        assert path.name == FILE_NAME
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        again = KnownRecordings.of(path.parent, training)
        assert again.rows.tobytes() == filled.rows.tobytes()
        assert again.identity(name_of(1)) == filled.identity(name_of(1)) != ""
        assert path.stat().st_size < 3 * 2_500 + 3_000

    def test_nothing_is_known_of_a_home_that_has_none(
        self, tmp_path: Path, training: Training, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And nothing is said of it."""
        known = KnownRecordings.of(tmp_path, training)
        assert (len(known.rows), known.has_identity, caplog.text) == (0, True, "")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            lambda path: path.write_bytes(path.read_bytes()[:3000] + b"x" * 9),
            lambda path: path.write_bytes(b""),
            lambda path: path.chmod(0o666),
            lambda path: (
                path.rename(path.with_name("real")).with_name(FILE_NAME).symlink_to("real")
            ),
            lambda path: write_sealed(path, "another file", path.read_bytes()[64:]),
        ],
        ids=["cut off", "edited", "empty", "writable by all", "a link", "sealed as another"],
    )
    def test_what_is_damaged_or_foreign_is_begun_again(
        self,
        filled: KnownRecordings,
        training: Training,
        caplog: pytest.LogCaptureFixture,
        damage: Callable[[Path], Any],
    ) -> None:
        """With a warning; nothing of it is believed."""
        caplog.set_level(logging.WARNING, "pipeline")
        damage(filled.path)
        known = KnownRecordings.of(filled.path.parent, training)
        assert len(known.rows) == 0
        assert "is damaged or not ours alone; begun again from used_gts/" in caplog.text

    def test_the_rows_of_another_edition_are_begun_again(
        self, filled: KnownRecordings, training: Training
    ) -> None:
        """Sealed by us, but of another shape."""
        stream = io.BytesIO()
        np.save(stream, np.zeros(3, dtype=[("sha256", "S64")]), allow_pickle=False)
        write_sealed(filled.path, FILE_NAME, stream.getvalue())
        assert len(KnownRecordings.of(filled.path.parent, training).rows) == 0

    def test_it_is_written_whole_or_not_at_all(
        self, filled: KnownRecordings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A full disk leaves what was there."""
        before = filled.path.read_bytes()

        def fail(*_: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space left"):
            filled.save()
        assert filled.path.read_bytes() == before
        assert [one.name for one in filled.path.parent.iterdir()] == [FILE_NAME]
        assert read_sealed(filled.path, FILE_NAME) is not None


class TestOneByOne:
    """What is known of one content."""

    def test_it_is_known_by_its_content_and_by_the_code_that_read_it(self) -> None:
        """Other code reads it again, and its row takes the place of the old one."""
        known = known_of(seen([1, 2, 3]), seen([4, 5]))
        assert name_of(0) in known
        assert name_of(9) not in known
        assert (known.was_read_by(name_of(0), MAKER), known.was_read_by(name_of(0), "x")) == (
            True,
            False,
        )
        known.add([(name_of(0), seen([1, 2]))], "x")
        assert (len(known.rows), known.was_read_by(name_of(0), "x")) == (2, True)
        assert known.rows["size"].tolist() == [2, 2]

    def test_a_row_can_be_kept_elsewhere_and_put_back(self) -> None:
        """As a withdrawal does in the journal."""
        known = known_of(seen([1, 2, 3]))
        row = known.row(name_of(0))
        assert row is not None
        other = known_of(seen([9]))
        other.put(np.frombuffer(row.tobytes(), dtype=ROW))
        assert other.are_one(name_of(0), name_of(0))
        assert known.row(name_of(5)) is None

    def test_contents_without_observations_are_not_one(self) -> None:
        """Two that say nothing are two."""
        empty = np.empty(0, dtype=np.uint64)
        nothing = Observations(empty, empty, empty, empty == 0, "", "")
        known = known_of(nothing, nothing, seen([1, 2]))
        assert not known.are_one(name_of(0), name_of(1))
        names = [name_of(n) for n in range(3)]
        assert known.common(names, names, names) == []
        known.has_identity = False
        assert known.common(names, names, names) == []

    def test_labels_of_a_sketch_are_compared_where_they_are_clear(self) -> None:
        """Of ten common observations one is not clear, and three of nine differ."""
        values = np.arange(1, 11) << 40
        labels = np.full(10, 7)
        other = labels.copy()
        other[:3] = 8
        other[3] = AMBIGUOUS
        known = known_of(seen(values, labels), seen(values, other))
        assert known.labels_changed(name_of(0), name_of(1)) == pytest.approx(3 / 9)

    def test_labels_of_what_is_not_known_count_as_changed(self) -> None:
        """Nothing is called a mere copy on no evidence, and no night fails."""
        known = known_of(seen([1 << 40]), seen([2 << 40]))
        for other in (name_of(1), name_of(9)):
            assert known.labels_changed(name_of(0), other) == 1.0
        assert known.labels_changed(name_of(9), name_of(0)) == 1.0


class TestCompared:
    """All at once, by sketches."""

    @given(
        sizes=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
        share=st.floats(0, 1),
        seed=st.integers(0, 10_000),
    )
    @hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
    def test_the_estimate_is_that_of_brute_force_within_its_tolerance(
        self, sizes: tuple[int, int], share: float, seed: int
    ) -> None:
        """Five standard errors of the sample that a sketch is; exact where nothing is left out."""
        random = np.random.default_rng(seed)
        smaller, larger = min(sizes), max(sizes)
        n_common = round(share * smaller)
        common = random_values(random, n_common)
        one = seen(np.r_[common, random_values(random, smaller - n_common)])
        other = seen(np.r_[common, random_values(random, larger - n_common)])
        true = one.common(other) / smaller
        known = known_of(one, other)
        found = list(known.pairs([name_of(0)], [name_of(1)], least=0.0))
        estimate = found[0].containment if found else 0.0
        if larger <= SKETCH_SIZE:
            few = n_common < min(5, smaller)
            assert estimate == (0.0 if few else pytest.approx(true))
            return
        n_sampled = max(SKETCH_SIZE * smaller / larger, 1)
        variance = max(true * (1 - true), 0.25 / n_sampled) / n_sampled
        tolerance = 5 * np.sqrt(variance) + 1 / n_sampled
        assert abs(estimate - true) <= tolerance

    def test_every_pair_of_a_batch_and_all_that_is_known_is_found(self) -> None:
        """Forty random recordings that overlap at random: as going through all pairs finds them."""
        random = np.random.default_rng(3)
        pool = random_values(random, 3000)
        found = [
            seen(np.unique(random.choice(pool, random.integers(20, 400), replace=False)))
            for _ in range(40)
        ]
        known = known_of(*found)
        names = [name_of(n) for n in range(40)]
        pairs = {
            (one.sha256, one.other): one.n_common
            for one in known.pairs(names[:15], names, least=0.0)
        }
        brute = {
            (names[i], names[j]): found[i].common(found[j])
            for i in range(15)
            for j in range(40)
            if i != j and found[i].common(found[j]) >= 5
        }
        assert pairs == pytest.approx(brute)

    def test_shares_are_of_each_side_and_never_above_one(self) -> None:
        """A half knows its whole, of which it is a half."""
        random = np.random.default_rng(4)
        values = random_values(random, 2000)
        known = known_of(seen(values[:1000]), seen(values))
        (pair,) = known.common([name_of(0)], [name_of(1)])
        assert (pair.size, pair.other_size, pair.is_exact) == (1000, 2000, False)
        assert pair.share == pair.containment == 1.0
        assert pair.share_of_other == pytest.approx(0.5)

    def test_what_sketches_estimate_is_counted_where_both_are_at_hand(self) -> None:
        """Else the estimate stays."""
        random = np.random.default_rng(5)
        values = random_values(random, 2000)
        at_hand = {name_of(0): seen(values[:1200]), name_of(1): seen(values[700:])}
        known = known_of(*at_hand.values())
        (pair,) = known.common([name_of(0)], [name_of(1)])
        exact = exactly(pair, at_hand.get)
        assert (exact.n_common, exact.is_exact) == (500.0, True)
        del at_hand[name_of(1)]
        assert exactly(pair, at_hand.get) is pair

    def test_a_piece_beyond_a_sketch_is_looked_for_in_the_whole(self) -> None:
        """Only among those at hand, for sketches say nothing; and in a bounded number of them."""
        random = np.random.default_rng(6)
        values = np.sort(random_values(random, 30_000))
        wholes = [
            seen(np.r_[values, random_values(random, 5)]) for _ in range(BLIND_RECORDINGS + 2)
        ]
        pieces = [seen(values[20_000 + 50 * n : 20_008 + 50 * n]) for n in range(3)]
        known = known_of(*pieces, *wholes)
        new = [name_of(n) for n in range(3)]
        others = [name_of(3 + n) for n in range(len(wholes))]
        assert known.common(new, others) == []
        found = known.common(new, others, others)
        assert {one.other for one in found} == set(others[:BLIND_RECORDINGS])
        assert {one.sha256 for one in found} == set(new)

    def test_a_chance_hit_among_few_hashes_is_not_sure(self) -> None:
        """Of a short recording only three hashes lie in the sketch of a long one."""
        values = np.arange(1, 30_001, dtype=np.uint64) << np.uint64(34)
        step = np.uint64(1 << 33)
        short = np.r_[values[[100]], values[[200, 300]] + step, values[1000:1030] + step]
        piece = np.r_[values[100:103], values[1000:1030]]
        known = known_of(seen(values), seen(short), seen(piece), seen(values[:4]))
        (pair,) = known.pairs([name_of(1)], [name_of(0)], least=0.03)
        assert (pair.n_seen, pair.is_sure) == (1, False)
        assert pair.containment == pytest.approx(1 / 3)
        assert exactly(pair, {name_of(0): seen(values), name_of(1): seen(short)}.get).is_sure
        assert known.twins([name_of(0), name_of(1)]) == []
        (pair,) = known.pairs([name_of(3)], [name_of(0)], least=0.03)
        assert (pair.n_seen, pair.is_sure) == (4, True)

    def test_what_has_nothing_in_common_is_unrelated(self) -> None:
        """As is needed of recordings that a version is to be scored on."""
        random = np.random.default_rng(7)
        values = random_values(random, 2000)
        others = (values[1000:], values[500:1500], np.array([5 << 40]))
        known = known_of(seen(values[:1000]), *map(seen, others))
        asked = [name_of(n) for n in (0, 1, 2, 3, 9)]
        assert known.unrelated(asked, [name_of(0)]) == [name_of(1), name_of(3)]


class TestSharedRows:
    """Without an identity of the module, rows may be shared by chance."""

    @pytest.fixture
    def random(self) -> np.random.Generator:
        """Give the same numbers to every test."""
        return np.random.default_rng(8)

    def alike(self, random: np.random.Generator, n: int) -> list[Observations]:
        """Return recordings of which any two share a third of their rows."""
        pool = random_values(random, 300)
        return [seen(random.choice(pool, 100, replace=False)) for _ in range(n)]

    def different(self, random: np.random.Generator, n: int) -> list[Observations]:
        """Return recordings that share nothing."""
        return [seen(random_values(random, 100)) for _ in range(n)]

    def compared(self, known: KnownRecordings, n_new: int) -> set[tuple[int, int]]:
        """Return the pairs of new ones, the first of all, with any other that are found."""
        number = {one.decode(): place for place, one in enumerate(known.rows["sha256"])}
        names = list(number)
        return {
            (number[one.sha256], number[one.other]) for one in known.common(names[:n_new], names)
        }

    @pytest.mark.parametrize("n_new", [2, 3, 10, 20], ids=lambda n: f"{n} new")
    def test_where_they_are_only_equal_contents_are_found(
        self, random: np.random.Generator, n_new: int
    ) -> None:
        """Whether known ones share them, or new ones among themselves."""
        found = self.alike(random, 20)
        found[-1] = found[0]
        known = known_of(*found, has_identity=False)
        assert self.compared(known, n_new) - {(19, 0)} == {(0, 19)}

    @pytest.mark.parametrize("n_known", [0, 1, 2, 5])
    def test_a_new_season_that_shares_them_is_not_one_recording(
        self, random: np.random.Generator, n_known: int
    ) -> None:
        """However few are known, and whether these share rows or not."""
        new, before = self.alike(random, 10), self.different(random, n_known)
        known = known_of(*new, *before, has_identity=False)
        assert self.compared(known, 10) == set()

    def test_two_recordings_alone_are_too_few_to_tell(self, random: np.random.Generator) -> None:
        """Only equal contents are found."""
        known = known_of(*self.alike(random, 2), has_identity=False)
        assert self.compared(known, 2) == set()

    def test_copies_and_parts_are_no_sharing_by_chance(self, random: np.random.Generator) -> None:
        """A batch of nothing but copies is recognised."""
        before = self.different(random, 6)
        copies = [seen(one.hashes[: 60 + number]) for number, one in enumerate(before)]
        known = known_of(*copies, *before, has_identity=False)
        assert self.compared(known, 6) == {(n, n + 6) for n in range(6)}

    def test_with_an_identity_nobody_asks(self, random: np.random.Generator) -> None:
        """The module has said what tells recordings apart."""
        known = known_of(*self.alike(random, 4), has_identity=True)
        assert len(self.compared(known, 4)) == 12

    def test_docs_own_model_has_no_identity(self) -> None:
        """It is the example of such a module."""
        path = str(OWN_MODEL / "grain_quality.py")
        assert not load_training_module(Settings(training_module=path)).has_identity


def test_what_an_alarm_named_was_chosen_though_it_was_not_checked_yet(tmp_path: Path) -> None:
    """Of 15: the five of the alarm, then seven of which five are others; ten were chosen."""
    training: Any = SimpleNamespace(has_identity=True)
    pool = dict.fromkeys((f"{number:02}" for number in range(15)), 5.0)
    names = [*pool]
    nothing_read = KnownRecordings(tmp_path / FILE_NAME, has_identity=True)
    for chosen, random in ((names[:5], []), (names[3:10], names[10:13]), (names[3:9], names[9:12])):
        remember_listed(
            tmp_path, training, nothing_read, pool=pool, chosen=chosen, random=random, run_id="r"
        )
    alarm, first, again = Journal(tmp_path).read().all(Triaged)
    assert (alarm.pool, alarm.n_chosen_before) == (15, 0)
    assert (first.pool, first.n_chosen_before + len(first.chosen)) == (15, 10)
    # Who asks again for fewer is given another list: what it lists no more nobody need check.
    assert again.n_chosen_before + len(again.chosen) == 9
