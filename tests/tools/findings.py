"""What a program of measurements found, what was asked, and the page that it writes."""

from __future__ import annotations

import datetime
import math
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from life_simulation import Figure, limits_in_words, table

HEADER = ("figure", "asked", "found ± standard error", "held")


@dataclass(frozen=True)
class Finding:
    """One figure.

    Parameters
    ----------
    name
        What it is, in words.
    found
        As it was measured.
    least, most
        What was asked for; neither: it is reported as it is.
    scale, digits, unit
        As it is told.
    """

    name: str
    found: Figure
    least: float = -math.inf
    most: float = math.inf
    scale: float = 1.0
    digits: int = 2
    unit: str = ""

    @property
    def asked(self) -> str:
        """In words; empty where nothing was."""
        return limits_in_words(self.least, self.most, self.scale, self.unit)

    def is_held(self, errors_allowed: float) -> bool:
        """Say whether it is in the limits, but for so many standard errors; a NaN is not."""
        slack = errors_allowed * self.found.error
        is_asked = math.isfinite(self.least) or math.isfinite(self.most)
        return not is_asked or self.least - slack <= self.found.value <= self.most + slack

    def row(self, errors_allowed: float) -> list[str]:
        """Return it as a row of a table."""
        shown = self.found.text(self.digits, self.scale, self.unit)
        held = "yes" if self.is_held(errors_allowed) else "**no**"
        return [self.name, self.asked, shown, held if self.asked else ""]


def share(name: str, found: Figure, least: float = -math.inf, most: float = math.inf) -> Finding:
    """Return a share as a finding in percent."""
    return Finding(name, found, least, most, scale=100, digits=1, unit=" %")


@dataclass(frozen=True)
class Section:
    """What one part of a program found."""

    title: str
    what: str
    findings: Sequence[Finding]

    def text(self, command: str, errors_allowed: float = 0.0) -> str:
        """Return it in markdown, with the date and the command that measured it."""
        machine = f"{platform.python_implementation()} {platform.python_version()}"
        made = f"{datetime.date.today().isoformat()}, {machine}, {os.cpu_count()} cores"
        rows = [one.row(errors_allowed) for one in self.findings]
        what = textwrap.fill(self.what, 100, break_long_words=False, break_on_hyphens=False)
        measured = f"{self.title} of {made}, by `{command}`"
        parts = (f"## {self.title}", what, measured, table(HEADER, rows))
        return "\n\n".join(parts) + "\n"


def write_sections(path: Path, introduction: str, texts: Mapping[str, str]) -> None:
    """Write sections into a page, in this order; what else stands there stays.

    Parameters
    ----------
    introduction
        The title of the page, and what is above the sections.
    texts
        Title -> section, or an empty text for one that was not measured now.
    """
    known: dict[str, str] = {}
    if path.exists():
        for part in path.read_text(encoding="utf-8").split("\n## ")[1:]:
            known[part.partition("\n")[0]] = f"## {part.rstrip()}\n"
    sections = [text or known.get(title, "") for title, text in texts.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join([f"{introduction.strip()}\n", *filter(None, sections)])
    path.write_text(content, encoding="utf-8")
