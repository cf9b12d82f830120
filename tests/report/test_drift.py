"""What changed in the data: distances by hand, and what chance alone would do."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import run_sweep
from sample_pages import make_facts, read_page
from sampling import Part
from scipy import stats

from retraining.report import drift
from retraining.report.drift import ChangedData, FeatureShift, compare_examples, lost_features

N_EACH = 15


def changed(old: Any, new: Any) -> ChangedData:
    """Compare one feature; each example is a recording of its own."""
    return compare_examples(pd.DataFrame({"a": old}), pd.DataFrame({"a": new}))


def shift_of(old: Any, new: Any) -> FeatureShift:
    """Return the shift of one feature."""
    (only,) = changed(old, new).shifts
    return only


class TestNumbers:
    """Features that are numbers."""

    def test_a_shifted_feature_comes_first(self) -> None:
        """Two deviations to the right: a distance of 2 Phi(1) - 1 = 0.68 in expectation."""
        random = np.random.default_rng(1)
        recordings = np.repeat(range(20), 100)
        old = pd.DataFrame(random.normal(size=(2000, 3)), recordings, ["a", "b", "c"])
        new = pd.DataFrame(random.normal(size=(2000, 3)), recordings, ["a", "b", "c"])
        new["b"] += 2
        first, *others = compare_examples(old, new).shifts
        assert first.feature == "b"
        assert first.statistic == pytest.approx(0.683, abs=0.04)
        assert first.p_value == 1 / 1000
        assert max(one.statistic for one in others) < 0.1

    def test_unknown_values_are_left_out(self) -> None:
        """A feature that is known on one side only has no row; a constant one has no distance."""
        old = pd.DataFrame({"a": [1.0, 1.0, np.nan], "b": [np.nan] * 3})
        new = pd.DataFrame({"a": [1.0, 1.0], "b": [1.0, 2.0]})
        found = compare_examples(old, new)
        (only,) = found.shifts
        assert (only.feature, only.statistic, len(only.trained_on)) == ("a", 0.0, 2)
        assert only.missing == (1 - 2 / 3, 0.0)
        # In four of ten pairs the one without a value is among the new ones: 1/2 against 0.
        assert only.missing_p_value == 1.0
        assert (found.lost, found.gained) == ((), ("b",))
        text = read_page(make_facts(changed=found)).text
        assert "Values that are missing" in text
        assert "a133.30.0" in text
        assert "Production was trained without a value of what is known now: b." in text

    @pytest.mark.parametrize(
        "values",
        [
            [1.0, np.inf, 2.0, -np.inf],
            pd.Series([1, 2, None], dtype="Int64"),
            pd.Series([1, 2.5, None], dtype=object),
            [Decimal("1.5"), Decimal("2.5")],
        ],
        ids=["infinite", "nullable", "objects", "decimals"],
    )
    def test_numbers_of_every_kind(self, values: Any) -> None:
        """The finite ones of them."""
        found = changed(values, values)
        (shift,) = found.shifts
        assert len(shift.new) == 2
        assert (shift.statistic, shift.p_value, shift.categories) == (0.0, 1.0, ())
        read_page(make_facts(changed=found))

    def test_only_infinite_values_are_none(self) -> None:
        """They are known, but there is nothing to draw."""
        table = pd.DataFrame({"a": [np.inf, np.inf]})
        found = compare_examples(table, table)
        assert (found.shifts, found.p_value) == ([], 1.0)

    def test_a_column_of_one_side_is_lost_or_gained(self) -> None:
        """As one without values."""
        found = compare_examples(pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}))
        assert (found.shifts, found.lost, found.gained) == ([], ("a",), ("b",))

    @pytest.mark.parametrize("digits", [0, 1, 9])
    def test_the_distance_is_that_of_kolmogorov_and_smirnov(self, digits: int) -> None:
        """Of all values, also where they are too many to be shuffled one by one."""
        random = np.random.default_rng(2)
        old, new = (random.normal(loc, 1, 700).round(digits) for loc in (0, 0.2))
        expected = stats.ks_2samp(old, new).statistic
        assert shift_of(old, new).statistic == pytest.approx(expected, abs=1e-12)


class TestTexts:
    """Features that are none."""

    def test_the_distance_is_what_would_have_to_change(self) -> None:
        """Shares of 1/2 and 1/2 become 3/4 and 1/4: a quarter of the examples."""
        shift = shift_of(["oak", "fir"], ["oak", "oak", "oak", "fir"])
        assert shift.statistic == pytest.approx(0.25)
        assert [(one.value, one.trained_on, one.new) for one in shift.categories] == [
            ("oak", 0.5, 0.75),
            ("fir", 0.5, 0.25),
        ]
        # Two of six recordings as old: one oak and one fir, or (farther apart) two alike.
        assert shift.p_value == 1.0
        text = read_page(make_facts(changed=changed(["oak", "fir"], ["oak"] * 3 + ["fir"]))).text
        assert "the total variation: the share that would have to take another value" in text
        assert "Smirnov" not in text
        assert "oak50.075.0" in text

    def test_rare_values_count_together(self) -> None:
        """Those that production has seen apart from those that it has not."""
        frequent = [f"{number}" for number in range(6)] * 10
        old = [*frequent, "rare 1", "rare 2"]
        new = [*frequent, "rare 3", "rare 4", "rare 5"]
        shift = shift_of(old, new)
        known, unseen = shift.categories[-2:]
        assert len(shift.categories) == 8
        assert (known.value, known.trained_on, known.new) == (drift.OTHER_KNOWN, 2 / 62, 0)
        assert (unseen.value, unseen.trained_on, unseen.new) == (drift.OTHER_NEW, 0, 3 / 63)

    @pytest.mark.parametrize(
        "values",
        [
            [True, False, None],
            pd.Series(["a", "b", None], dtype="category"),
            [1.5, "unknown", None],
            [["a", "list"], {"a": "dict"}, None],
            [pd.Timestamp(2026, 11, 22), pd.Timestamp(2026, 11, 23), None],
            [1 + 1j, 2 + 0j],
            [b"\xff", "\udcff"],
        ],
        ids=["truth", "category", "mixed", "objects", "dates", "complex", "bytes"],
    )
    def test_values_of_every_kind(self, values: Any) -> None:
        """Compared as they read."""
        column = pd.Series(values)
        found = changed(column, column)
        (shift,) = found.shifts
        assert (shift.statistic, shift.p_value, len(shift.categories)) == (0.0, 1.0, 2)
        read_page(make_facts(changed=found))

    def test_numbers_that_became_texts(self) -> None:
        """Nobody can subtract them: apart."""
        assert shift_of([1.5, 2.5], ["1,5", "2,5"]).statistic == 1.0

    def test_a_category_that_nobody_has(self) -> None:
        """It is part of the type, not of the data."""
        column = pd.Series(["a"], dtype=pd.CategoricalDtype(["a", "b"]))
        assert [one.value for one in shift_of(column, column).categories] == ["a"]

    def test_names_that_are_all_different_are_no_evidence(self) -> None:
        """Every arrangement has as many new ones, also where they are more than the cells."""
        for n in (20, 400):
            old, new = (pd.DataFrame({"a": range(n)}) + at for at in (0, n))
            old, new = (one.astype(str).set_axis(np.arange(n) % 10) for one in (old, new))
            found = compare_examples(old, new)
            assert found.shifts[0].statistic == pytest.approx(1.0)
            assert (found.shifts[0].p_value, found.p_value) == (1.0, 1.0)


class TestLostFeatures:
    """What one side does not know at all."""

    def test_lost_features(self) -> None:
        """A sensor that broke: what production learnt from is not there any more."""
        old = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [np.nan] * 2, "d": [1, 2]})
        new = pd.DataFrame({"a": [np.nan, 1.0], "b": [np.nan] * 2, "c": [1.0, 2.0]})
        assert lost_features(old, new) == ("b", "d")
        text = read_page(make_facts(changed=ChangedData(lost=("b", "d")))).text
        assert "No new recording has a value of what production was trained with: b, d." in text

    def test_nothing_on_one_side_is_nothing_to_compare(self) -> None:
        """No p-value, and no error."""
        some, none = pd.DataFrame({"a": [1.0]}), pd.DataFrame({"a": []}, dtype=float)
        assert compare_examples(some, none) == ChangedData(lost=("a",), n_trained_on=1)
        assert compare_examples(none, some) == ChangedData(gained=("a",), n_new=1)


def recordings(*values: Sequence[float], first: int = 0, feature: str = "a") -> pd.DataFrame:
    """Return the values of one feature, a recording after the other."""
    names = [f"{number}.csv" for number in range(first, first + len(values))]
    index = np.repeat(names, [len(each) for each in values])
    return pd.DataFrame({feature: np.concatenate(values)}, index=index)


def alike_within(
    random: np.random.Generator, n_recordings: int, *, first: int = 0, n_features: int = 3
) -> pd.DataFrame:
    """Return recordings of `N_EACH` examples that differ far more than the examples of one."""
    middle = np.repeat(random.normal(size=(n_recordings, n_features)), N_EACH, axis=0)
    values = middle + 0.3 * random.normal(size=middle.shape)
    names = np.repeat([f"{number}.csv" for number in range(first, first + n_recordings)], N_EACH)
    return pd.DataFrame(values, names, [f"f{number}" for number in range(n_features)])


def shared_sessions(
    random: np.random.Generator, *, both_sides: bool
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Return old and new recordings, three for each of twelve sessions, which are all but alike.

    Either half of the sessions is new, or one recording of each.
    """
    tables = []
    middle = alike_within(random, 12)
    for part in range(3):
        names = {f"{number}.csv": f"{number}_{part}.csv" for number in range(12)}
        tables.append(middle.rename(index=names) + 0.1 * random.normal(size=middle.shape))
    every = pd.concat(tables)
    sessions = {f"{number}_{part}.csv": f"s{number}" for number in range(12) for part in range(3)}
    ends = [f"_{part}.csv" for part in ([0] if both_sides else [0, 1, 2])]
    is_new = every.index.isin(
        [f"{number}{end}" for number in range(0, 12, 1 if both_sides else 2) for end in ends]
    )
    return every[~is_new], every[is_new], sessions


def naive_p_values(old: pd.DataFrame, new: pd.DataFrame) -> tuple[dict[str, float], float]:
    """Return the p-value of each feature and the overall one, by going through all splits."""
    every = pd.concat([old, new])
    names = sorted(set(every.index), key=lambda one: (one not in set(new.index), one))
    rows = []
    for chosen in itertools.combinations(names, new.index.nunique()):
        is_new = every.index.isin(chosen)
        sides = every[~is_new], every[is_new]
        row = {}
        for feature in every:
            known = [side[feature].dropna() for side in sides]
            if every[feature].isna().any():
                shares = [len(a) / len(b) for a, b in zip(known, sides, strict=True)]
                row[f"{feature} is missing"] = abs(shares[0] - shares[1])
            if all(len(each) for each in known):
                row[str(feature)] = shift_of(*known).statistic
        rows.append(row)
    table = pd.DataFrame(rows)
    as_far = {name: table[name].dropna() >= table[name][0] - 1e-9 for name in table}
    z = ((table - table.mean()) / table.std(ddof=0)).max(axis=1)
    by_feature = {str(name): float(hits.mean()) for name, hits in as_far.items()}
    return by_feature, float((z >= z[0] - 1e-6).mean())


class TestChance:
    """How often recordings of one kind are as far apart."""

    def test_one_of_three_recordings_proves_nothing(self) -> None:
        """There are three ways to choose it, and this is the farthest."""
        found = compare_examples(recordings([1, 2], [1, 3]), recordings([8, 9], first=2))
        assert found.shifts[0].statistic == 1.0
        assert (found.shifts[0].p_value, found.p_value) == (1 / 3, 1 / 3)
        assert (found.n_arrangements, found.n_shuffled) == (3, (2, 1))
        text = read_page(make_facts(changed=found)).text
        assert (
            "Whether anything changed at all: p = 0.33. If all 3 recordings were of one kind, any "
            "1 of them might have been the new ones; in 1 of all 3 choices of 1 the most unusual "
            "feature is as unusual as it is here."
        ) in text

    def test_two_and_two_recordings_by_hand(self) -> None:
        """Of six choices the real one and its mirror image are apart; the others overlap."""
        found = compare_examples(recordings([1], [2]), recordings([3], [4], first=2))
        assert (found.shifts[0].p_value, found.p_value) == (2 / 6, 2 / 6)

    def test_one_old_and_one_new_recording_are_never_apart(self) -> None:
        """Either might be the new one."""
        found = compare_examples(recordings([1, 2]), recordings([8, 9], first=1))
        assert (found.shifts[0].statistic, found.p_value) == (1.0, 1.0)

    def test_one_new_recording_among_many(self) -> None:
        """It is one of twenty: no p-value can be smaller."""
        random = np.random.default_rng(4)
        new = alike_within(random, 1, first=19) + 9
        found = compare_examples(alike_within(random, 19), new)
        assert {one.p_value for one in found.shifts} == {1 / 20}
        assert (found.p_value, found.n_arrangements) == (1 / 20, 20)

    @pytest.mark.parametrize("seed", range(4))
    def test_p_values_are_those_of_all_splits(self, seed: int) -> None:
        """Numbers, texts that are rare, values that are missing, a sensor that only two had."""
        random = np.random.default_rng(seed)
        table = alike_within(random, 7, n_features=3).round(1)
        table["word"] = [f"{value:.0f}" for value in 5 * table["f0"]]
        table.loc[random.random(len(table)) < 0.2, "f1"] = np.nan
        table["f2"] = table["f2"].where(table.index.isin(["3.csv", "6.csv"]))
        is_new = table.index.isin(["4.csv", "5.csv", "6.csv"])
        found = compare_examples(table[~is_new], table[is_new])
        by_feature, overall = naive_p_values(table[~is_new], table[is_new])
        assert {one.feature: one.p_value for one in found.shifts} == pytest.approx(
            {name: by_feature[name] for name in ("f0", "f1", "f2", "word")}
        )
        missing = {one.feature: one.missing_p_value for one in found.shifts}
        assert missing["f1"] == pytest.approx(by_feature["f1 is missing"])
        assert missing["f2"] == pytest.approx(by_feature["f2 is missing"])
        assert found.p_value == pytest.approx(overall)

    def test_random_choices_come_close_to_all_of_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """924 of six and six, and 300 random ones: four standard errors."""
        random = np.random.default_rng(5)
        old, new = (alike_within(random, 6, first=first) for first in (0, 6))
        exact = compare_examples(old, new)
        monkeypatch.setattr(drift, "MOST_ARRANGEMENTS", 300)
        drawn = compare_examples(old, new)
        assert (exact.n_arrangements, drawn.n_arrangements) == (924, 300)
        for one in exact.shifts:
            (other,) = [each for each in drawn.shifts if each.feature == one.feature]
            error = (one.p_value * (1 - one.p_value) / 299) ** 0.5
            assert other.p_value == pytest.approx(one.p_value, abs=4 * error + 1 / 300)

    def test_many_values_are_shuffled_in_cells(self) -> None:
        """Of 256 quantiles: as far apart as all values are, but for two cells."""
        random = np.random.default_rng(6)
        old, new = alike_within(random, 20), alike_within(random, 15, first=20) + 1
        one = new["f0"].set_axis(np.repeat(range(15), N_EACH))
        other = old["f0"].set_axis(np.repeat(range(15, 35), N_EACH))
        assert one.nunique() + other.nunique() > drift.MOST_CELLS
        distance = drift._number_distances(other, one, drift.arrangements(35, 15))[0]
        exact = stats.ks_2samp(one, other).statistic
        assert exact - 2 / drift.MOST_CELLS <= distance <= exact + drift.ROUNDING

    @pytest.mark.parametrize(
        ("arrange", "flattered"),
        [
            (lambda random: (alike_within(random, 6), alike_within(random, 6, first=6)), True),
            (lambda random: (alike_within(random, 25), alike_within(random, 4, first=25)), True),
            (lambda random: shared_sessions(random, both_sides=False), True),
            (lambda random: shared_sessions(random, both_sides=True), False),
        ],
        ids=["6 and 6", "25 and 4", "whole sessions", "sessions on both sides"],
    )
    def test_nothing_changed(
        self, arrange: Callable[[np.random.Generator], tuple[Any, ...]], flattered: bool
    ) -> None:
        """60 times: at most 5 % are below 0.05; were examples independent, most would be.

        A right test exceeds the bound with one seed in a thousand.
        """
        random = np.random.default_rng(7)
        found = [compare_examples(*arrange(random)) for _ in range(60)]
        shifts = [one for each in found for one in each.shifts]
        if flattered:
            tests = [stats.ks_2samp(one.trained_on, one.new, method="asymp") for one in shifts]
            assert np.mean([one.pvalue < 0.05 for one in tests]) > 0.5
        overall = [one.p_value for one in found if one.p_value is not None]
        assert len(overall) == 60
        assert sum(one < 0.05 for one in overall) <= stats.binom.ppf(0.999, 60, 0.05)

    def test_a_real_shift_of_one_feature_is_found(self) -> None:
        """Of all new recordings, in one of eight features, by three deviations of recordings."""
        random = np.random.default_rng(8)
        old, new = (
            alike_within(random, n, first=first, n_features=8) for n, first in ((18, 0), (15, 18))
        )
        new["f5"] += 3
        found = compare_examples(old, new)
        first, *others = found.shifts
        assert first.feature == "f5"
        assert (first.p_value, found.p_value) == (1 / 1000, 1 / 1000)
        assert np.mean([one.p_value for one in others]) > 0.2

    def test_a_sensor_that_fails_in_all_new_recordings_is_found(self) -> None:
        """Although its distance is not known, and the other features are as they were."""
        random = np.random.default_rng(9)
        old, new = alike_within(random, 6), alike_within(random, 6, first=6)
        assert (compare_examples(old, new).p_value or 0) > 0.05
        for lost in (np.nan, np.inf):
            found = compare_examples(old, new.assign(f2=lost))
            assert found.p_value is not None
            assert found.p_value < 0.05
            assert "f2" not in [one.feature for one in found.shifts]
        without = compare_examples(old, new.drop(columns="f2"))
        assert (without.lost, without.p_value) == (("f2",), found.p_value)

    def test_a_sensor_that_fails_now_and_then_has_its_own_p_value(self) -> None:
        """In a third of the examples of all new recordings."""
        random = np.random.default_rng(10)
        old, new = alike_within(random, 6), alike_within(random, 6, first=6)
        new["f2"] = new["f2"].where(np.arange(len(new)) % 3 > 0)
        found = {one.feature: one for one in compare_examples(old, new).shifts}["f2"]
        assert found.missing == pytest.approx((0, 1 / 3))
        assert found.missing_p_value == 2 / 924
        assert found.p_value > found.missing_p_value

    def test_the_order_of_rows_and_recordings_does_not_matter(self) -> None:
        """A page is the same however its recordings were read."""
        random = np.random.default_rng(11)
        old, new = alike_within(random, 18), alike_within(random, 15, first=18)
        new["word"], old["word"] = (np.where(one["f1"] > 0, "b", "a") for one in (new, old))
        found = compare_examples(old, new)
        again = compare_examples(
            old.sample(frac=1, random_state=1), new.sample(frac=1, random_state=2)
        )
        assert again.p_value == found.p_value
        assert [(one.feature, one.statistic, one.p_value) for one in again.shifts] == [
            (one.feature, one.statistic, one.p_value) for one in found.shifts
        ]

    def test_sessions_are_shuffled_whole(self) -> None:
        """Five new recordings of one session are one of five, not five of 25."""
        random = np.random.default_rng(12)
        old, new = alike_within(random, 20), alike_within(random, 5, first=20) + 3
        apart = compare_examples(old, new)
        sessions = {f"{number}.csv": f"s{number // 5}" for number in range(25)}
        together = compare_examples(old, new, sessions)
        assert apart.p_value == 1 / 1000
        assert (apart.n_shuffled, apart.shuffled_things) == ((20, 5), "recordings")
        assert together.p_value == 1 / 5
        assert (together.n_shuffled, together.shuffled_things) == ((4, 1), "sessions")
        assert [one.statistic for one in together.shifts] == [one.statistic for one in apart.shifts]
        text = read_page(make_facts(changed=together)).text
        assert "If all 5 sessions were of one kind" in text
        assert "Whole sessions are chosen" in text

    def test_a_recording_without_a_session_is_one_of_its_own(self) -> None:
        """Also where another session has its name."""
        table = recordings([1], [2], [3], [4])
        sessions = {"0.csv": "", "1.csv": "3.csv", "2.csv": "3.csv"}
        found = compare_examples(table, recordings([5], first=4), sessions)
        assert (found.n_shuffled, found.shuffled_things) == ((3, 1), "sessions")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_folder")
class TestHalvesOfOneSeason:
    """Real recordings of which nothing changed."""

    def test_chance_is_hardly_ever_called_a_change(self, part: Part) -> None:
        """A sample of the splits; `make drift-halves` takes them all."""
        printed = run_sweep("drift_halves.py", "--splits", part.of(100, 30))
        print(f"\n{printed}")
        assert json.loads(printed.splitlines()[-1])["as promised"]
