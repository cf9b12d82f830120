"""Samples of long tables: spread evenly, another one at every commit, told."""

from __future__ import annotations

import collections
import itertools
import subprocess
import sys

import pytest
from conftest import ROOT
from sampling import Part, chosen, spread, turn


class TestChoice:
    """Which cases of a table run."""

    @pytest.mark.parametrize(
        ("n_cases", "share", "n_run"),
        [(1, 0.1, 1), (2, 0.5, 1), (3, 0.5, 2), (20, 0.25, 5), (30, 0.1, 3), (4, 1, 4)],
    )
    def test_a_share_of_them_and_at_least_one(self, n_cases: int, share: float, n_run: int) -> None:
        """Rounded up, each once."""
        for begin in (0.0, 0.3, 0.999999):
            run = chosen(n_cases, share, begin)
            assert len({*run}) == len(run) == n_run
            assert {*run} <= {*range(n_cases)}

    def test_they_are_spread_evenly(self) -> None:
        """The same distance between them, wherever the sample begins."""
        for begin in (0.0, 0.3, 0.999999):
            run = spread(3, 30, begin)
            assert [late - early for early, late in itertools.pairwise(run)] == [10, 10]

    @pytest.mark.parametrize(("n_cases", "share"), [(2, 0.5), (7, 0.3), (132, 0.1)])
    def test_each_case_has_its_turn(self, n_cases: int, share: float) -> None:
        """As often as any other."""
        begins = [i / 1000 for i in range(1000)]
        often = collections.Counter(one for at in begins for one in chosen(n_cases, share, at))
        assert sorted(often) == [*range(n_cases)]
        assert max(often.values()) - min(often.values()) <= 0.02 * 1000

    def test_tables_turn_with_the_commit_and_each_for_itself(self) -> None:
        """The same commit runs the same."""
        assert turn("a", "1ce27df") == turn("a", "1ce27df")
        begins = [turn(table, commit) for table in "abcdefgh" for commit in ("1ce27df", "61198fe")]
        assert len({*begins}) == 16
        assert all(0 <= one < 1 for one in begins)
        halves = [chosen(2, 0.5, one)[0] for one in begins]
        assert {*halves} == {0, 1}


class TestSweeps:
    """What is counted out on a command line."""

    def test_a_part_under_the_option(self) -> None:
        """And a beginning that is the commit's own, whichever it is."""
        assert (Part(sample=False).of(8, 2), Part(sample=True).of(8, 2)) == ("8", "2")
        cases = [*"abcdef"]
        assert Part(sample=False).some(cases, 2) == cases
        first, second = Part(sample=True).some(cases, 2)
        assert ord(second) - ord(first) == 3
        begins = [Part(sample=sample).begin("outages") for sample in (False, True)]
        assert begins[0] == begins[1]
        assert 0 <= float(begins[0]) < 1


@pytest.mark.slow
class TestRuns:
    """What pytest does with it."""

    @staticmethod
    def collected(*words: str) -> str:
        """Let pytest collect a file with a long table; return what it says."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "tests/test_text.py", "-p", "no:cacheprovider"),
                *("--collect-only", "-q", "-k", "hostile_text", *words),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def test_a_part_runs_and_it_is_told(self) -> None:
        """After -m and -k; what has no mark runs anyway."""
        from test_text import HOSTILE

        whole, part = self.collected(), self.collected("--sample")
        n_cases = 3 * len(HOSTILE)
        assert whole.count("takes_no_time[") == n_cases
        assert 0 < part.count("takes_no_time[") <= n_cases / 5
        assert "::test_hostile_text_takes_no_time\n" in part
        assert f"of {n_cases} cases of the long tables" in part
        assert "make test-slow runs all" in part
        assert "sample: " not in whole
