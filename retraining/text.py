"""How facts read: names and messages from outside, addresses, times, errors with their digits.

The one way in which text from outside (file names, tags, exception texts) reaches a terminal, a
log or a page.
"""

from __future__ import annotations

import datetime
import math
import re

USER_AND_PASSWORD = re.compile(r"//\S*@")
MOST_DECIMALS = 9
QUERY = re.compile(r"(\w://[^\s?]*|\burl: /[^\s?]*)\?\S*")
"""Of an address, also of one that requests tells without its host."""


def printable(value: object, longest: int | None = None) -> str:
    r"""Return a text from outside on one line, without secrets, harmless wherever it is shown.

    Users, passwords and query strings of addresses are cut out, control characters and stray bytes
    become escapes; only then is it cut short.

    Examples
    --------
    >>> printable("two\nlines")
    'two\\nlines'
    >>> printable("postgresql://me:secret@db/mlflow?password=secret")
    'postgresql://db/mlflow'
    """
    text = QUERY.sub(r"\1", USER_AND_PASSWORD.sub("//", str(value)))
    text = text.encode(errors="backslashreplace").decode()
    text = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    return text[:longest]


def now() -> str:
    """Return the local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def as_local_time(seconds: float) -> str:
    """Return a moment in the form of `now`."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def moment(at: str) -> str:
    """Return an ISO 8601 moment to the minute, as a page shows it."""
    return at[:16].replace("T", " ")


def number_text(value: float, decimals: int = 1, *, sign: bool = False) -> str:
    """Return a number with so many decimals, or as many as show two of its digits.

    Examples
    --------
    >>> number_text(12.34), number_text(0.00662), number_text(0.0), number_text(1.5, 2, sign=True)
    ('12.3', '0.0066', '0.0', '+1.50')
    """
    plus = "+" if sign else ""
    if math.isfinite(value) and value != 0:
        decimals = min(max(decimals, 1 - math.floor(math.log10(abs(value)))), MOST_DECIMALS)
    return f"{value:{plus}.{decimals}f}"


def error_text(value: float, unit: str) -> str:
    """Return an error with its unit; see `number_text`.

    Examples
    --------
    >>> error_text(6.71, "%"), error_text(0.0066, "m")
    ('6.7 %', '0.0066 m')
    """
    return f"{number_text(value)} {unit}"
