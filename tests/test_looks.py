"""What was judged before: answers, repeated looks, and what was lost in a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retraining.journal import Journal
from retraining.looks import Judged, Look, Past

MODEL = "StemClassifier"


def judged(recordings: str, outcome: str = "healthy", **values: Any) -> Judged:
    """Return a verdict on recordings that are called by one letter each."""
    fields = {
        "model_name": MODEL,
        "version": 1,
        "run_id": "run",
        "question": "settings",
        "cycle": "c",
        "what": f"{outcome} on {recordings}",
        "at": "2026-01-01T00:00:00+00:00",
    }
    return Judged(**{**fields, **values}, recordings=list(recordings), outcome=outcome)


def look(compared: str | None, learnt: str = "seed 0", **values: Any) -> Look:
    """Return a lost look at recordings that are called by one letter each."""
    fields = {
        "model_name": MODEL,
        "version": 1,
        "run_id": "run",
        "question": "settings",
        "cycle": "c",
        "recordings": list(compared or ""),
        "decided": list(compared or ""),
        "mean_error": 20.0,
        "mean_error_low": 15.0,
        "challenger": 2,
        "challenger_mean_error": 19.0,
        "threshold": 10.0,
        "promote": False,
        "at": "2026-01-01T00:00:00+00:00",
    }
    return Look(
        **{**fields, **values}, learnt=learnt, compared=None if compared is None else list(compared)
    )


def repeated(past: Past, compared: str, learnt: str = "new", question: str = "settings") -> int:
    """Return how often these recordings were looked at, as of production 1."""
    return past.repeated_looks(1, learnt, question, list(compared))


class TestRepeatedLooks:
    """`Past.repeated_looks`."""

    def test_the_first_look_is_none(self) -> None:
        """Nor is one at recordings that were never looked at."""
        assert repeated(Past(), "abc") == 0
        assert repeated(Past((look("abc"),)), "def") == 0

    def test_another_width_of_the_window_is_no_fresh_look(self) -> None:
        """What lay there at a look, or was judged before it, was seen."""
        past = Past((judged("xy"), look("abc", recordings=list("abcdef"))))
        assert repeated(past, "abcdef") == 1
        assert repeated(past, "xyabc") == 1
        assert repeated(past, "abcdefg") == 0

    def test_one_fresh_recording_makes_a_fresh_look(self) -> None:
        """Whatever the others went through."""
        past = Past((look("abc", "one"), look("abc", "two"), look("abcd", "three")))
        assert repeated(past, "abcde") == 0
        assert repeated(past, "cdx") == 0

    @pytest.mark.parametrize("compared", ["abc", "cba", "ab", "c"])
    def test_another_seed_or_setting_on_the_same_recordings_repeats_a_look(
        self, compared: str
    ) -> None:
        """Also on some of them: they are no more news."""
        past = Past((look("abc", "seed 0"),))
        assert repeated(past, compared, "seed 1") == 1
        assert repeated(past, compared, "seed 0", "other settings") == 1

    def test_every_look_counts(self) -> None:
        """Of each seed and setting, whoever was production, won or lost."""
        past = Past(
            (
                look("abc", "seed 0"),
                look("abc", "seed 1", question="other settings"),
                look("abc", "seed 2", version=7),
                look("abc", "seed 3", promote=True),
            )
        )
        assert repeated(past, "abc", "seed 4") == 4

    @pytest.mark.parametrize("n_crashes", [1, 2, 5])
    def test_the_same_look_after_a_crash_is_no_other_one(self, n_crashes: int) -> None:
        """The same training data, settings and recordings, in any order."""
        past = Past((look("abc", "seed 0"),) * n_crashes)
        assert repeated(past, "cab", "seed 0") == 0
        assert repeated(past, "abc", "seed 1") == 1

    def test_a_withdrawn_recording_makes_no_fresh_look(self) -> None:
        """Of a, b, c and d the newest is taken out: both looks had a part in what is left."""
        past = Past((look("abc", "one"), look("abcd", "two")))
        assert repeated(past, "abc") == 2
        assert repeated(past, "bcd") == 1

    def test_looks_before_the_newest_recording_came_do_not_count(self) -> None:
        """They were another window, and had the whole level as this one had first."""
        past = Past((look("abc", "one"), look("abcd", "two"), look("abcde", "three")))
        assert repeated(past, "abcde") == 1
        assert repeated(past, "abcd") == 2
        assert repeated(past, "abc") == 3

    def test_a_look_of_which_nothing_is_known_counts_once(self) -> None:
        """Once for all of them, against every challenger, until another version is production."""
        unknown = Look.unknown(MODEL, 1)
        assert repeated(Past((unknown,)), "xyz") == 1
        assert repeated(Past((unknown, unknown)), "xyz") == 1
        assert repeated(Past((unknown, look("abc"))), "abc") == 2
        assert Past((unknown,)).repeated_looks(2, "new", "settings", ["x"]) == 0

    def test_one_look_more_may_be_imagined(self) -> None:
        """Without a look nothing changes."""
        past = Past((look("abc"),))
        assert repeated(past.and_then(look("abc", "seed 1")), "abc") == 2
        assert past.and_then(None) is past


class TestAnswer:
    """`Past.answer`: what was found on these recordings."""

    def test_it_is_the_last_verdict_if_all_were_judged(self) -> None:
        """In words; over several nights."""
        past = Past((judged("abc"), judged("de", "not_promoted")))
        assert past.answer(1, "settings", list("abcde")) == "not_promoted on de"
        assert past.answer(1, "settings", list("ab")) == "not_promoted on de"
        assert past.answer(1, "settings", []) == "not_promoted on de"

    def test_one_that_was_not_judged_is_news(self) -> None:
        """By this production and with these settings."""
        past = Past((judged("abc"), judged("d", version=2), judged("e", question="other")))
        assert past.answer(1, "settings", list("abc")) == "healthy on abc"
        assert past.answer(1, "settings", list("abcd")) == ""
        assert past.answer(2, "settings", list("abc")) == ""
        assert past.answer(1, "other", list("abc")) == ""
        assert past.answer(1, "other", ["e"]) == "healthy on e"
        assert past.answer(3, "settings", ["a"]) == ""

    def test_a_look_without_a_verdict_is_no_answer(self) -> None:
        """The cycle died: the next one has to come to its end."""
        past = Past((look("abc"),))
        assert past.answer(1, "settings", list("abc")) == ""
        assert past.judged_by(1) == set()

    def test_what_a_version_was_judged_on_is_known_by_question_or_by_all(self) -> None:
        """`status` counts them without settings."""
        past = Past((judged("ab"), judged("c", question="other"), judged("d", version=2)))
        assert past.judged_by(1) == set("abc")
        assert past.judged_by(1, "settings") == set("ab")
        last = past.last(1)
        assert last is not None
        assert last.what == "healthy on c"
        assert past.last(3) is None

    def test_a_look_ends_in_a_verdict_on_the_same_recordings(self) -> None:
        """With what the cycle came to."""
        ended = look("abc").ended("not_promoted", "in words")
        assert ended == judged("abc", "not_promoted", what="in words")


def lost_in_a_row(*order: Judged | Look) -> int:
    """Return how many lost looks of production 1 count."""
    return Past(order).lost_in_a_row(1)


class TestLostInARow:
    """`Past.lost_in_a_row`: production is bad, and nothing is better."""

    def test_three_windows_apart_are_three(self) -> None:
        """With a verdict between them that is not healthy."""
        verdict = judged("abcd", "not_promoted")
        assert lost_in_a_row(look("abcd"), verdict, look("efgh"), look("ijkl")) == 3

    def test_looks_at_nearly_the_same_recordings_count_once(self) -> None:
        """A night adds one or two."""
        assert lost_in_a_row(look("abcd"), look("abcde"), look("bcdef")) == 1
        assert lost_in_a_row(look("abcd"), look("bcde"), look("cdef"), look("defg")) == 2

    def test_what_decided_tells_them_apart(self) -> None:
        """Not the wider windows that were compared, which take longer to change."""
        first, second = look("abcdefgh", decided=list("efgh")), look("abcdefghij")
        later = look("cdefghijk", decided=list("hijk"))
        assert lost_in_a_row(first, later) == 2
        assert lost_in_a_row(first, second) == 1

    def test_a_healthy_night_begins_anew(self) -> None:
        """What was lost before it is past."""
        assert lost_in_a_row(look("abcd"), look("efgh"), judged("ijkl"), look("mnop")) == 1
        assert lost_in_a_row(look("abcd"), look("efgh"), judged("ijkl")) == 0

    def test_a_healthy_night_of_another_version_does_not(self) -> None:
        """It says nothing of this one; nor do its looks."""
        found = lost_in_a_row(
            look("abcd"), judged("e", version=2), look("fghi", version=2), look("jklm")
        )
        assert found == 2

    def test_a_promotion_is_no_loss(self) -> None:
        """Production of then was replaced, and came back by a rollback."""
        assert lost_in_a_row(look("abcd", promote=True), look("efgh")) == 1

    @pytest.mark.parametrize(("low", "n_lost"), [(9.9, 0), (10.0, 0), (10.1, 2)])
    def test_production_must_surely_be_above_the_threshold(self, low: float, n_lost: int) -> None:
        """By the lower end of the interval on the newest window: else it may be luck."""
        newest = look("efgh", mean_error_low=low)
        assert lost_in_a_row(look("abcd", mean_error_low=0.0), newest) == n_lost

    def test_without_a_look_nothing_is_lost(self) -> None:
        """Nor by one of which nothing is known."""
        assert lost_in_a_row() == 0
        assert lost_in_a_row(Look.unknown(MODEL, 1)) == 0


class TestKept:
    """In the journal and beside the monitoring run."""

    def test_a_number_that_mlflow_gave_again_is_another_version(self, tmp_path: Path) -> None:
        """Its verdicts and lost looks are not its own; its recordings were looked at."""
        journal = Journal(tmp_path)
        journal.append(judged("abc"), look("abcd"))
        past = Past.of(journal.read(), MODEL, 1, "another run")
        assert past.judged_by(1) == set()
        assert past.lost_looks(1) == []
        assert repeated(past, "abcd") == 1
        assert Past.of(journal.read(), MODEL, 1, "run").judged_by(1) == set("abc")

    def test_a_journal_gives_them_back_in_order(self, tmp_path: Path) -> None:
        """Of this registered model alone."""
        entries = [judged("ab"), look("abc"), judged("c", "not_promoted"), look(None, "lost")]
        journal = Journal(tmp_path)
        for entry in entries:
            journal.append(entry)
        journal.append(look("abc", model_name="Other"))
        past = Past.of(journal.read(), MODEL)
        assert past.order == tuple(entries)
        assert past.judged == [entries[0], entries[2]]
        assert past.looks == [entries[1], entries[3]]

    def test_a_look_is_read_back_from_its_file(self) -> None:
        """Equal; a field that came later is left out."""
        kept = look("abc", decided=["b", "c"])
        assert Look.from_bytes(kept.to_bytes()) == kept
        later = json.dumps({**json.loads(kept.to_bytes()), "unheard_of": 1}).encode()
        assert Look.from_bytes(later) == kept

    @pytest.mark.parametrize(
        "change",
        [
            {"compared": None},
            {"compared": []},
            {"compared": [1, 2]},
            {"compared": ""},
            {"compared": "abc"},
            {"mean_error_low": "high"},
            {"threshold": None},
            {"mean_error": float("nan")},
            {"challenger_mean_error": float("inf")},
            {"decided": []},
            {"promote": "no"},
            {"recordings": 3},
            {"decided": "abc"},
            {"version": "1"},
            {"learnt": None},
            {"question": 3},
            {"model_name": ["x"]},
        ],
    )
    def test_what_is_no_look_is_refused(self, change: dict[str, Any]) -> None:
        """As a ValueError, whatever is in the file."""
        content = json.dumps({**json.loads(look("abc").to_bytes()), **change}).encode()
        with pytest.raises(ValueError, match=r"."):
            Look.from_bytes(content)

    @pytest.mark.parametrize(
        "content",
        [b"", b"null", b"[]", b"{}", b'"look"', b"3", b"\xff\xfe", b"{", b"[" * 100_000],
    )
    def test_what_cannot_be_read_is_refused(self, content: bytes) -> None:
        """As a ValueError, never another traceback."""
        with pytest.raises(ValueError, match=r"."):
            Look.from_bytes(content)
