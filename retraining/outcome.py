"""How a cycle may end: each way once, with everything that is said of it."""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """How a cycle ended.

    Attributes
    ----------
    value
        The word that tags, JSON documents and file names have.
    word, mark
        On the page's badge.
    tone
        "good", "look" (somebody should) or "bad"; empty where there is nothing to feel.
    headline, next_step
        Sentences for a person; `{production}` and `{champion}` stand for versions.
    """

    word: str
    mark: str
    tone: str
    headline: str
    next_step: str

    def __new__(
        cls, value: str, mark: str, word: str, tone: str, headline: str, next_step: str
    ) -> Outcome:
        """Take everything that is said of an outcome beside its value."""
        member = object.__new__(cls)
        member._value_ = value
        member.mark, member.word, member.tone = mark, word, tone
        member.headline, member.next_step = headline, next_step
        return member

    WAITING = (
        *("waiting", "…", "Waiting", ""),
        "Nothing was judged",
        "Nothing. The next run looks again.",
    )
    ALREADY_JUDGED = (
        *("already_judged", "=", "Nothing new", ""),
        "Version {production} stays production",
        "Nothing, until new recordings arrive. `python pipeline_orchestrator.py --force` judges "
        "these again.",
    )
    HEALTHY = (
        *("healthy", "✓", "Healthy", "good"),
        "Version {production} stays production",
        "Nothing. The files stay in new_gts/ until a promotion; the newest ones decide.",
    )
    NOT_PROMOTED = (
        *("not_promoted", "!", "Not promoted", "look"),
        "Version {production} stays production",
        "Nothing at once: the files stay in new_gts/, and the next recordings add evidence. If "
        "this happens again and again, look at the recordings that both models get wrong, and "
        "improve the training module.",
    )
    PROMOTED = (
        *("promoted", "✓", "Promoted", "good"),
        "Version {production} is production now",
        "Nothing. `python pipeline_orchestrator.py rollback` goes back to version {champion}.",
    )
    ROLLED_BACK = (
        *("rolled_back", "↶", "Rolled back", "look"),
        "Version {production} is production again",
        "Find out why the version that was left failed, before its successor is trained in the "
        "same way.",
    )
    FAILED = (
        *("failed", "✗", "Failed", "bad"),
        "The cycle did not come to its end",
        "Do what the message says, or nothing: no file was lost, and the next run goes on. "
        "`python pipeline_orchestrator.py status` tells which version is production. If the same "
        "message comes back, look at the log.",
    )
