"""Which recordings were listed for checking, and how they weigh once their labels are there.

A list holds recordings that were chosen because they are hard, and others that were drawn at
random from the rest of the pool. The hard ones stand for themselves, the random ones for all the
rest: so the mean error over the pool is estimated, however much was chosen. Nothing heavy is
imported here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from retraining.journal import Entry, Memory

CHOSEN, RANDOM = "chosen", "random"
MEMBER_CHARACTERS, MOST_MEMBERS = 12, 5_000
"""Of the SHA-256 of each recording of a pool, and of how many these are remembered: of a larger
pool lists take next to nothing."""
SAME_POOL = 0.5
"""Share of the smaller one of two pools from which they are one, of which some were checked."""


@dataclass(frozen=True)
class Triaged(Entry):
    """Recordings were listed for people to check.

    Parameters
    ----------
    pool
        Recordings that nobody had checked, and those of them that earlier lists of the same pool
        named and that are checked by now: else it would look healthy once its hard ones are.
    chosen, random
        SHA-256 of the contents that were listed.
    identities
        Digests of their observations, the chosen ones first: a labelled file has other bytes.
    estimates, pool_estimate
        Estimated errors of the listed ones, in the same order, and their mean over the pool; empty
        and None where nobody could tell.
    run_id
        Of the production that estimated them.
    n_chosen_before
        Recordings of the pool that earlier lists had chosen.
    members
        The first characters of the SHA-256 of all that nobody had checked; empty of very many.
    group
        Of the lists of one pool, one after the other.
    """

    KIND: ClassVar[str] = "triaged"
    pool: int
    chosen: list[str]
    random: list[str]
    identities: list[str]
    who: str
    at: str
    estimates: list[float] = field(default_factory=list)
    pool_estimate: float | None = None
    run_id: str = ""
    n_chosen_before: int = 0
    members: list[str] = field(default_factory=list)
    group: str = ""

    def is_of_pool(self, members: Collection[str]) -> bool:
        """Say whether it was made from what is now a pool of these members, mostly."""
        common = len({*self.members} & {*members})
        return common > 0 and common >= SAME_POOL * min(len(self.members), len(members))


@dataclass(frozen=True)
class Mark:
    """Why a recording was listed, the last time.

    Parameters
    ----------
    how
        `CHOSEN` or `RANDOM`.
    pool, n_chosen
        Recordings of the pool, and those of them that were chosen by then.
    identity
        Digest of its observations.
    estimate, pool_estimate
        Estimated error of it and, in the mean, of the pool; None where nobody could tell.
    run_id
        Of the production that estimated them.
    group
        Of the lists of one pool, of which the newest one tells how much was chosen of it.
    """

    how: str
    pool: int
    n_chosen: int
    identity: str = ""
    estimate: float | None = None
    pool_estimate: float | None = None
    run_id: str = ""
    group: str = ""

    def easier_by(self, newest: Mark, run_id: str) -> float | None:
        """Return by how much the pool's mean estimate is above its own; None: nobody could tell."""
        mine = {self.run_id, newest.run_id} == {run_id}
        if not run_id or not mine or self.estimate is None or newest.pool_estimate is None:
            return None
        return newest.pool_estimate - self.estimate


def members_of(pool: Collection[str]) -> list[str]:
    """Return what is remembered of a pool of contents."""
    return sorted(one[:MEMBER_CHARACTERS] for one in pool) if len(pool) <= MOST_MEMBERS else []


def marks(memory: Memory) -> dict[str, Mark]:
    """Return SHA-256 of a listed content -> its newest mark, the newest last."""
    return marks_of(memory.all(Triaged))


def marks_of(lists: Iterable[Triaged]) -> dict[str, Mark]:
    """Return the same of some lists, the oldest first."""
    found: dict[str, Mark] = {}
    for one in lists:
        hows = [CHOSEN] * len(one.chosen) + [RANDOM] * len(one.random)
        contents = zip([*one.chosen, *one.random], hows, one.identities, strict=True)
        for place, (sha256, how, identity) in enumerate(contents):
            found.pop(sha256, None)
            found[sha256] = Mark(
                how,
                one.pool,
                one.n_chosen_before + len(one.chosen),
                identity,
                one.estimates[place] if place < len(one.estimates) else None,
                one.pool_estimate,
                one.run_id,
                one.group,
            )
    return found


def _newest_of_group(listed: Sequence[Mark]) -> list[Mark]:
    """Return for each mark that one of its group whose list came last: it knows the most."""
    newest: dict[str, Mark] = {}
    for one in listed:
        if one.group and one.n_chosen >= newest.get(one.group, one).n_chosen:
            newest[one.group] = one
    return [newest.get(one.group, one) for one in listed]


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
    offsets
        What is added to the error of each before the mean is taken; None for nothing.
    """

    n_chosen: int = 0
    n_random: int = 0
    n_unlisted: int = 0
    pools: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None
    lacks_chosen: bool = False
    offsets: tuple[float, ...] | None = None

    @classmethod
    def of(cls, found: Sequence[Mark | None], run_id: str = "") -> Selection:
        """Weigh recordings, one mark or None for each.

        Parameters
        ----------
        run_id
            Of production, whose errors are to be weighed.

        Notes
        -----
        Stratified sampling: with C chosen and R random ones, and f the share of the pool that was
        chosen (the mean over the listed ones; lists of one pool, one after the other, chose from
        it together), a chosen one weighs (C + R) f / C, a random one
        (C + R) (1 - f) / R, one on no list 1. Without either of them nothing stands for the rest:
        then all weigh the same.

        The pool's mean estimate is known without a label. Where this very production made it, only
        by how much errors differ from their estimates is weighed, and that mean is added: what a
        recording is known to be easier by than its pool is its offset. Neither makes the mean of
        all nights another one; the second makes few recordings scatter less.

        References
        ----------
        W. G. Cochran, "Sampling Techniques", 3rd edition, 1977, chapters 5 and 7 (the difference
        estimator).
        """
        listed = [one for one in found if one is not None]
        n_chosen = sum(one.how == CHOSEN for one in listed)
        n_random = len(listed) - n_chosen
        counts = (n_chosen, n_random, len(found) - len(listed))
        newest = _newest_of_group(listed)
        pools = tuple(sorted({one.pool for one in newest}))
        if not n_chosen or not n_random:
            lacks_chosen = not n_chosen and any(one.n_chosen for one in listed)
            return cls(*counts, pools, lacks_chosen=lacks_chosen)
        share = sum(one.n_chosen / one.pool for one in newest) / len(listed)
        weight_of = {
            CHOSEN: len(listed) * share / n_chosen,
            RANDOM: len(listed) * (1 - share) / n_random,
        }
        weights = tuple(1.0 if one is None else weight_of[one.how] for one in found)
        alike = all(math.isclose(one, weights[0]) for one in weights)
        pairs = zip(listed, newest, strict=True)
        easier_by = iter([one.easier_by(last, run_id) for one, last in pairs])
        offsets = [0.0 if one is None else next(easier_by) for one in found]
        known = tuple(one for one in offsets if one is not None)
        return cls(
            *counts,
            pools,
            None if alike else weights,
            offsets=known if run_id and len(known) == len(offsets) else None,
        )

    @property
    def known(self) -> float:
        """Return what the offsets add to the mean."""
        if self.offsets is None:
            return 0.0
        weights = self.weights or [1.0] * len(self.offsets)
        both = zip(weights, self.offsets, strict=True)
        return sum(weight * offset for weight, offset in both) / sum(weights)

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
            and_estimates = "" if self.offsets is None else ", and the estimates of all"
            return f"estimated for {self._pool} from {ones}{others}{and_estimates}"
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
            "assisted": self.offsets is not None,
        }


def _n(number: int, what: str) -> tuple[str, str]:
    """Return a number of things, and the verb that follows."""
    return (f"{number} {what}", "is") if number == 1 else (f"{number} {what}s", "are")
