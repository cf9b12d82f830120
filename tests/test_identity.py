"""Observations: the same for a recording however it is saved, another one's for another."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import OWN_MODEL
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sample_gts import make_recording

from retraining.identity import AMBIGUOUS, SKETCH_SIZE, Observations, _hashes, observe
from retraining.settings import Settings
from retraining.training import Training, load_training_module

MASK = 2**64 - 1
STEP = 0x9E3779B97F4A7C15
GOLDEN_NUMBERS = ["0x88d7c35bbbf3eded", "0xf5ea822406458f46", "0xc72971d82e15bb46"]
GOLDEN_ROWS = ["0x96562f463d252e7", "0x2c684a4e5e6707b7", "0x6e72e1dbfd4adc2c"]


@pytest.fixture(scope="module")
def stems() -> Training:
    """Give the default training module."""
    return load_training_module(Settings())


@pytest.fixture(scope="module")
def grain() -> Training:
    """Give that of docs/own_model, which does not say what tells recordings apart."""
    return load_training_module(Settings(training_module=str(OWN_MODEL / "grain_quality.py")))


@pytest.fixture
def rows(stems: Training) -> pd.DataFrame:
    """Give a recording as the default module reads it."""
    return stems.parse(make_recording(5, n_tracks=8).to_csv(index=False).encode(), "1.csv")


def parts_of(observations: Observations) -> tuple[bytes, bytes, str, str]:
    """Return what must not depend on how a recording is saved."""
    return (
        observations.hashes.tobytes(),
        observations.labels.tobytes(),
        observations.digest,
        observations.labels_digest,
    )


def mixed(values: list[int]) -> int:
    """Return SplitMix64 over 64-bit values, in Python's own integers: an oracle."""
    state = 0
    for value in values:
        state = ((state ^ value) + STEP) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def bits(value: Any) -> int:
    """Return the 64 bits of a value: an oracle."""
    if value is None:
        return STEP
    if isinstance(value, str):
        return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "little")
    number = float(value)
    number = math.nan if math.isnan(number) else number + 0.0
    return int.from_bytes(struct.pack("<d", number), "little")


def grains(*moisture: float, label: str = "sound") -> pd.DataFrame:
    """Return grains that differ in their moisture only."""
    table = pd.DataFrame({"length_mm": 6.5, "width_mm": 3.2, "moisture_percent": moisture})
    return table.assign(brightness=170.0, quality=label, file="1.csv")


class TestHashes:
    """`_hashes`: sketches that are stored depend on them for ever."""

    def test_they_are_what_they_always_were(self) -> None:
        """Another constant here is another identity of every recording of every home."""
        table = pd.DataFrame({"x": [1.0, 248.0, np.nan], "word": ["sound", None, "True Positive"]})
        assert [hex(one) for one in _hashes(table, ["x"])] == GOLDEN_NUMBERS
        assert [hex(one) for one in _hashes(table, ["x", "word"])] == GOLDEN_ROWS

    @given(
        number=st.one_of(st.floats(), st.integers(-(2**53), 2**53)),
        word=st.one_of(st.none(), st.text(st.characters(codec="utf-8"))),
    )
    @hypothesis_settings(max_examples=50, deadline=None)
    def test_they_equal_those_of_an_oracle(self, number: float, word: str | None) -> None:
        """Each cell after the other, mixed by SplitMix64."""
        table = pd.DataFrame({"x": [number], "word": pd.Series([word], dtype=object)})
        assert int(_hashes(table, ["x", "word"])[0]) == mixed([bits(number), bits(word)])

    @pytest.mark.parametrize(
        "same",
        [
            [pd.Series([1, 0]), pd.Series([1.0, -0.0]), pd.Series([True, False])],
            [pd.Series([1, None], dtype="Int64"), pd.Series([1.0, np.nan])],
            [pd.Series([True, None], dtype="boolean"), pd.Series([1.0, np.nan], dtype="float32")],
            [
                pd.Series(["a", None], dtype=object),
                pd.Series(["a", None], dtype="str"),
                pd.Series(["a", None], dtype="category"),
            ],
        ],
        ids=["numbers", "missing integers", "missing truths", "texts"],
    )
    def test_equal_values_have_equal_ones_however_they_are_kept(
        self, same: list[pd.Series[Any]]
    ) -> None:
        """A column may become another type when a file is saved again."""
        found = {_hashes(pd.DataFrame({"x": one}), ["x"]).tobytes() for one in same}
        assert len(found) == 1

    def test_first_digits_never_round_coarser_than_whole_numbers(self) -> None:
        """Two digits below 100, none of a fraction above."""
        groups = [[0.061, 0.0614], [6.5, 6.54, 6.45000001], [171.0, 171.4, 170.6], [2e6, 2e6 + 0.3]]
        apart = [group[0] for group in groups] + [0.062, 6.6, 172.0, 2e6 + 1]
        hashes = [
            {int(one) for one in _hashes(pd.DataFrame({"x": group}), ["x"], exact=False)}
            for group in groups
        ]
        assert [len(one) for one in hashes] == [1] * len(groups)
        assert len(set(_hashes(pd.DataFrame({"x": apart}), ["x"], exact=False))) == len(apart)


class TestObservations:
    """`observe`."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda rows: rows.sample(frac=1, random_state=3),
            lambda rows: rows[rows.columns[::-1]],
            lambda rows: rows.assign(object_id=9_000 - rows["object_id"]),
            lambda rows: rows.assign(frames=rows["frames"] + 10_000),
            lambda rows: rows.assign(file="other.csv"),
            lambda rows: rows.assign(area=np.nan, aspect_ratio=1.0),
            lambda rows: rows.assign(centroids_x=rows["centroids_x"] + 0.3),
            lambda rows: rows.set_axis(rows.index + 17),
        ],
        ids=["order", "columns", "numbers", "frames", "name", "boxes", "fractions", "index"],
    )
    def test_they_do_not_depend_on_how_it_is_saved(
        self, stems: Training, rows: pd.DataFrame, change: Any
    ) -> None:
        """Neither hashes, labels nor digests."""
        assert parts_of(observe(stems, change(rows))) == parts_of(observe(stems, rows))

    def test_another_label_changes_the_labels_alone(
        self, stems: Training, rows: pd.DataFrame
    ) -> None:
        """The identity stays; how many objects say something else is counted."""
        first = rows["object_id"] == rows["object_id"].iloc[0]
        label = rows["ground_truth"].where(~first, ~rows["ground_truth"])
        one, other = observe(stems, rows), observe(stems, rows.assign(ground_truth=label))
        assert one.digest == other.digest
        assert one.labels_digest != other.labels_digest
        assert one.labels_changed(other) == other.labels_changed(one) == 1 / 8
        assert one.labels_lost(other) == 1 / 8

    def test_a_session_is_said_of_the_whole_recording(
        self, stems: Training, rows: pd.DataFrame
    ) -> None:
        """It changes what is said, and no label."""
        one, other = observe(stems, rows), observe(stems, rows.assign(session="monday"))
        assert (one.session, other.session) == ("", "monday")
        assert one.digest == other.digest
        assert one.labels_digest != other.labels_digest
        assert one.labels_changed(other) == 0.0

    def test_what_is_lost_counts_as_not_confirmed(
        self, stems: Training, rows: pd.DataFrame
    ) -> None:
        """Six of eight objects: none says anything else, two say nothing any more."""
        codes, _ = pd.factorize(rows["object_id"])
        one, other = observe(stems, rows), observe(stems, rows[codes < 6])
        assert one.labels_changed(other) == 0.0
        assert one.labels_lost(other) == 2 / 8
        assert other.labels_lost(one) == 0.0

    def test_an_observation_with_two_labels_says_nothing_clear(self, grain: Training) -> None:
        """Neither agreement nor contradiction; the whole contents still differ."""
        one = observe(grain, grains(11.0, 12.0))
        both = observe(grain, pd.concat([grains(11.0, 12.0), grains(12.0, label="mouldy")]))
        assert list(both.labels == AMBIGUOUS) == list(both.hashes == one.hashes[both.labels == 0])
        assert (one.common(both), one.labels_changed(both)) == (2, 0.0)
        assert one.labels_lost(both) == 1 / 2
        assert one.labels_digest != both.labels_digest

    def test_written_twice_is_once(self, grain: Training) -> None:
        """The observations are the same; only the whole content tells."""
        one = observe(grain, grains(11.0, 12.0))
        twice = observe(grain, pd.concat([grains(11.0, 12.0)] * 2))
        assert one.hashes.tobytes() == twice.hashes.tobytes()
        assert one.labels.tobytes() == twice.labels.tobytes()
        assert one.digest != twice.digest

    def test_without_identity_two_digits_count_and_the_digest_is_exact(
        self, grain: Training
    ) -> None:
        """Copies with fewer decimals are found; equal contents are known as such."""
        one, rounded = observe(grain, grains(11.02, 12.03)), observe(grain, grains(11.0, 12.0))
        assert one.hashes.tobytes() == rounded.hashes.tobytes()
        assert one.digest != rounded.digest

    def test_a_swap_of_labels_between_alike_rows_changes_the_digest(self, grain: Training) -> None:
        """Rows that are one to two digits are told apart by all of them."""
        alike = [grains(11.02), grains(11.03, label="mouldy")]
        swapped = [grains(11.02, label="mouldy"), grains(11.03)]
        one, other = observe(grain, pd.concat(alike)), observe(grain, pd.concat(swapped))
        assert one.digest == other.digest
        assert one.labels_digest != other.labels_digest

    @pytest.mark.parametrize("n_rows", [0, 3])
    def test_without_any_observation_there_is_no_digest(self, grain: Training, n_rows: int) -> None:
        """So that two of them are not one."""
        table = grains(*[np.nan] * n_rows)
        found = observe(grain, table.assign(length_mm=np.nan, width_mm=np.nan, brightness=np.nan))
        assert (len(found), found.digest, found.labels_digest) == (0, "", "")
        assert (found.common(found), found.covered_by([found])) == (0, 0.0)
        assert (found.labels_changed(found), found.labels_lost(found)) == (0.0, 0.0)
        full = observe(grain, grains(11.0))
        assert (full.common(found), full.labels_changed(found)) == (0, 0.0)
        assert full.labels_lost(found) == 1.0

    def test_coverage_counts_what_any_of_the_others_has(self, grain: Training) -> None:
        """Each observation once."""
        whole = observe(grain, grains(11.0, 12.0, 13.0, 14.0))
        parts = [observe(grain, grains(*one)) for one in ((11.0, 12.0), (12.0, 13.0), (20.0,))]
        assert whole.covered_by(parts) == 3 / 4
        assert whole.covered_by([]) == 0.0
        assert [whole.common(part) for part in parts] == [2, 2, 0]

    def test_a_sketch_is_the_least_hashes_and_a_byte_of_each_label(self) -> None:
        """Never more than its size; 0 stands for labels that are not clear."""
        hashes = np.arange(1, SKETCH_SIZE + 100, dtype=np.uint64) << np.uint64(40)
        labels = np.full(len(hashes), 255, dtype=np.uint64)
        labels[:3] = (AMBIGUOUS, 1, 254)
        found = Observations(hashes, labels, np.arange(len(hashes)), hashes > 0, "d", "l")
        assert found.sketch.tolist() == [one << 8 for one in range(1, SKETCH_SIZE + 1)]
        assert found.labels_sketch[:4].tolist() == [0, 2, 255, 1]
        assert len(found.labels_sketch) == SKETCH_SIZE

    def test_a_module_without_objects_has_rows(self, grain: Training) -> None:
        """Each bears a label of its own."""
        one = observe(grain, grains(11.0, 12.0, 13.0, 14.0))
        other = observe(grain, pd.concat([grains(11.0), grains(12.0, 13.0, 14.0, label="broken")]))
        assert one.labels_changed(other) == 3 / 4

    def test_columns_of_labels_in_another_order_say_the_same(self, grain: Training) -> None:
        """A module may return the columns as they stand in the file."""
        table = grains(11.0, 12.0).assign(inspector="me")
        one, other = observe(grain, table), observe(grain, table[table.columns[::-1]])
        assert parts_of(one) == parts_of(other)

    def test_an_identity_may_leave_rows_out(self, stems: Training, rows: pd.DataFrame) -> None:
        """Rows without a place; their labels are not compared either."""
        lost = rows.assign(centroids_x=rows["centroids_x"].where(rows.index >= 10))
        found = observe(stems, lost)
        assert len(found) == len(observe(stems, rows[10:]))
        module: Any = SimpleNamespace(
            MODEL_COLUMNS=("x",), identity=lambda rows: rows[["x"]][rows["x"] > 1]
        )
        training = dataclasses.replace(stems, module=module)
        table = pd.DataFrame({"x": [1.0, 2.0, np.nan], "label": [1, 0, 1]})
        assert len(observe(training, table)) == 1
