"""Which recordings were listed for checking, and how they weigh once their labels are there.

A list holds recordings that were chosen because they are hard, and others that were drawn at
random from the rest of the pool. The hard ones stand for themselves, the random ones for all the
rest: so the mean error over the pool is estimated, however much was chosen. Nothing heavy is
imported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from retraining.journal import Entry, Memory

CHOSEN, RANDOM = "chosen", "random"


@dataclass(frozen=True)
class Triaged(Entry):
    """Recordings were listed for people to check.

    Parameters
    ----------
    pool
        Recordings that the list was made from: those that nobody had checked.
    chosen, random
        SHA-256 of the contents that were listed.
    identities
        Digests of their observations, the chosen ones first: a labelled file has other bytes.
    """

    KIND: ClassVar[str] = "triaged"
    pool: int
    chosen: list[str]
    random: list[str]
    identities: list[str]
    who: str
    at: str


@dataclass(frozen=True)
class Mark:
    """Why a recording was listed, the last time.

    Parameters
    ----------
    how
        `CHOSEN` or `RANDOM`.
    pool, n_chosen
        Recordings that the list was made from, and those of them that were chosen.
    identity
        Digest of its observations.
    """

    how: str
    pool: int
    n_chosen: int
    identity: str = ""


def marks(memory: Memory) -> dict[str, Mark]:
    """Return SHA-256 of a listed content -> its newest mark, the newest last."""
    found: dict[str, Mark] = {}
    for one in memory.all(Triaged):
        hows = [CHOSEN] * len(one.chosen) + [RANDOM] * len(one.random)
        contents = zip([*one.chosen, *one.random], hows, one.identities, strict=True)
        for sha256, how, identity in contents:
            found.pop(sha256, None)
            found[sha256] = Mark(how, one.pool, len(one.chosen), identity)
    return found


@dataclass(frozen=True)
class Selection:
    """How some recordings came to be checked, and what each weighs in their mean.

    Parameters
    ----------
    n_chosen, n_random, n_unlisted
        How many of them were chosen, drawn at random, or on no list.
    pools
        Sizes of the pools that these were listed from, ascending, each once.
    weights
        One for each; None where all weigh the same.
    lacks_chosen
        Whether lists chose some, and none of those is among them.
    """

    n_chosen: int = 0
    n_random: int = 0
    n_unlisted: int = 0
    pools: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None
    lacks_chosen: bool = False

    @classmethod
    def of(cls, found: Sequence[Mark | None]) -> Selection:
        """Weigh recordings, one mark or None for each.

        Notes
        -----
        Stratified sampling: with C chosen and R random ones, and f the share of the pool that was
        chosen (the mean over the listed ones), a chosen one weighs (C + R) f / C, a random one
        (C + R) (1 - f) / R, one on no list 1. Without either of them nothing stands for the rest:
        then all weigh the same.

        References
        ----------
        W. G. Cochran, "Sampling Techniques", 3rd edition, 1977, chapter 5.
        """
        listed = [one for one in found if one is not None]
        n_chosen = sum(one.how == CHOSEN for one in listed)
        n_random = len(listed) - n_chosen
        counts = (n_chosen, n_random, len(found) - len(listed))
        pools = tuple(sorted({one.pool for one in listed}))
        if not n_chosen or not n_random:
            lacks_chosen = not n_chosen and any(one.n_chosen for one in listed)
            return cls(*counts, pools, lacks_chosen=lacks_chosen)
        share = sum(one.n_chosen / one.pool for one in listed) / len(listed)
        weight_of = {
            CHOSEN: len(listed) * share / n_chosen,
            RANDOM: len(listed) * (1 - share) / n_random,
        }
        weights = tuple(1.0 if one is None else weight_of[one.how] for one in found)
        alike = all(math.isclose(one, weights[0]) for one in weights)
        return cls(*counts, pools, None if alike else weights)

    @property
    def is_listed(self) -> bool:
        """Whether any was on a list."""
        return bool(self.n_chosen or self.n_random)

    @property
    def in_words(self) -> str:
        """Of what their mean is an estimate, or why it is none; empty where none was on a list."""
        chosen, of_chosen = _n(self.n_chosen, "chosen recording")
        random, of_random = _n(self.n_random, "random recording")
        if self.n_chosen and self.n_random:
            ones = f"{self.n_chosen} chosen and {random}"
            others = f" and {self.n_unlisted} that no list named" if self.n_unlisted else ""
            return f"estimated for {self._pool} from {ones}{others}"
        if self.n_chosen:
            return (
                f"this batch was selected: {chosen} of a list {of_chosen} in it and no random one, "
                "so its mean is no mean of all; check the random ones, too"
            )
        if self.n_random and self.lacks_chosen:
            return (
                f"{random} of a list {of_random} in this batch and none that was chosen for its "
                "difficulty, so its mean leaves out what is hard; check the chosen ones, too"
            )
        return ""

    @property
    def _pool(self) -> str:
        if len(self.pools) == 1:
            return f"the pool of {self.pools[0]}"
        return f"pools of {self.pools[0]} to {self.pools[-1]}"

    @property
    def as_facts(self) -> dict[str, object] | None:
        """Return it for `--json`; None where none was on a list."""
        if not self.is_listed:
            return None
        return {
            "chosen": self.n_chosen,
            "random": self.n_random,
            "unlisted": self.n_unlisted,
            "pools": [*self.pools],
            "weighted": self.weights is not None,
        }


def _n(number: int, what: str) -> tuple[str, str]:
    """Return a number of things, and the verb that follows."""
    return (f"{number} {what}", "is") if number == 1 else (f"{number} {what}s", "are")
