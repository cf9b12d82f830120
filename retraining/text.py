"""How facts read: names and messages from outside, addresses, times, errors with their digits.

The one way in which text from outside (file names, tags, exception texts) reaches a terminal, a
log or a page; and what no text that leaves the process may hold.
"""

from __future__ import annotations

import base64
import datetime
import functools
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MOST_DECIMALS = 9
INVISIBLE = frozenset(
    [
        *("\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u2800", "\u3164", "\uffa0"),
        *map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))),
    ]
)
"""Python calls them printable, and nobody sees them."""

LOG_DAY = re.compile(r"\s*\d{4}-\d\d-\d\d\s")


# --- What is shown ---


def printable(value: object, longest: int | None = None) -> str:
    r"""Return a text from outside on one line, without secrets, harmless wherever it is shown.

    Users, passwords and query strings of addresses are cut out (see `without_secrets`), control
    characters, invisible ones and stray bytes become escapes; only then is it cut short.

    Examples
    --------
    >>> printable("two\nlines")
    'two\\nlines'
    >>> printable("postgresql://me:secret@db/mlflow?password=secret")
    'postgresql://db/mlflow'
    """
    try:
        text = str(value)
    except Exception:  # an exception's own code, which may be anybody's
        text = type(value).__name__
    text = _hidden(text).encode(errors="backslashreplace").decode()
    if not (text.isascii() and text.isprintable()):
        text = "".join(char if _is_seen(char) else _escape(char) for char in text)
    return text[:longest]


def line_start(name: object) -> str:
    """Return a file's name, printable, to begin a line that is not taken for one of the log.

    Examples
    --------
    >>> line_start("a.csv"), line_start("2026-01-01 00:00:00 INFO promoted")
    ('a.csv', './2026-01-01 00:00:00 INFO promoted')
    """
    shown = printable(name)
    return f"./{shown}" if LOG_DAY.match(shown) else shown


def _is_seen(char: str) -> bool:
    return char.isprintable() and char not in INVISIBLE


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


# --- Secrets ---

HIDDEN = "***"
LONGEST_SPACED = 200
"""Characters between the first space in a password and the @ that ends it."""
SHORTEST_KNOWN = 4
"""A value of fewer characters is part of too many words to be replaced wherever it stands."""
SHORTEST_TOKEN, SHORTEST_TOKEN_WITH_DIGITS = 12, 8
"""Of what stands before the @ of an address alone; a shorter one is a user."""

_PHRASE = "password|passwd|passphrase|pwd"
"""May have spaces, so that without quotes it ends where the next pair begins."""
_LINE = "authorization|cookie"
"""Headers that are secret to their end."""
_WORD = (
    r"token|secret|credential|signature|(?:api|access|account|private|encryption)[-_. ]?key"
    r"|(?<![a-z])(?:sig|sas)(?![a-z])"
)
_NAME = rf"(?:(?P<phrase>{_PHRASE})|(?P<line>{_LINE})|{_WORD})"
# All quantifiers are bounded or possessive: the time must grow with the text, not faster.
PARTS = ("pass", "pwd", "auth", "cook", "tok", "secr", "cred", "sig", "sas", "key")
"""One of them is in every name of a secret."""
SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
PAIR = re.compile(
    rf"{_NAME}[\w.-]{{0,100}}+(?P<closed>(?:[\\\"'`\])]|&quot;|&#3[49];){{0,4}}+)\s{{0,8}}+"
    r"(?P<sep>=>|:=|[=:>,\uff1d\uff1a]|%3D|%3A(?:%20)?)\s{0,8}+",
    re.IGNORECASE,
)
FLAG = re.compile(
    rf"(?<![\w-])--?[\w-]{{0,40}}?{_NAME}[\w-]{{0,40}}+(?:\s|['\"],)['\",\s]{{0,8}}+", re.IGNORECASE
)
NAME_OF_FILE = re.compile(r"\.(?:csv|py|json|html|toml|txt|md|log|pkl|db)\Z", re.IGNORECASE)
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END|\Z)", re.DOTALL | re.IGNORECASE
)
USER_FLAG = re.compile(
    r"(?<![\w-])(?P<flag>-u|--(?:proxy-)?user)(?P<sep>['\",\s=]{1,8}+)[^\s:'\"]{1,64}+:[^\s'\"]++"
)
BARE_USER = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}+:[^\s/@]{1,100}+@(?=[\w.-]{1,100}+(?::\d|/))")
BEARER = re.compile(r"\b(?P<scheme>bearer|basic)[\s:]{1,8}+(?P<value>[^\s'\"]++)", re.IGNORECASE)
QUOTE = re.compile(r"[bru]{0,2}(\\{0,3}[\"'`])", re.IGNORECASE)
TO_QUOTE = {mark: re.compile(rf"(?:[^\\{mark}]|\\.)*+{mark}", re.DOTALL) for mark in "\"'`"}
BRACKETS = {"(": ")", "[": "]", "{": "}"}
END_OF_LINE = re.compile(r"[\r\n]|\Z")
END_OF_PHRASE = re.compile(r"[\r\n]|\s(?=[\w.-]{1,40}+[=:])|\Z")
END_OF_WORD = re.compile(r"\s|\Z")
END_AFTER_QUOTE = re.compile(r"[\s,;)}\]&<>]|\Z")
ALREADY_HIDDEN = re.compile(r"\*\*\*(?:[\s,;)}\]&<>'\"]|\Z)")
END_OF_TAG = re.compile(r"[<\r\n]|\Z")

_KNOWN_SCHEMES = (
    "postgres|postgresql|mysql|mariadb|mssql|oracle|mongodb|redis|amqp|https?|ftp|sftp|s3"
)
ADDRESS = re.compile(
    rf"(?:\b(?P<scheme>[a-z][a-z0-9+.-]{{0,30}}):|(?<![\w/.]))//"
    rf"|\b(?P<bare>{_KNOWN_SCHEMES})(?:\+\w{{1,20}})?:/?(?=[^\s/])",
    re.IGNORECASE,
)
END_OF_HOST = re.compile(r"[/?#\\]|\Z")
HOST_AND_PORT = re.compile(
    r"(?:\[[0-9a-f:.%]*+\]|[^:]*+)(?::\d{0,5}+)?(?:[:.,;)\]'\"!>|`}]*\Z|[,;'\"|])", re.IGNORECASE
)
RUN = re.compile(r"\S++")
ENCODED_SLASHES = "%3A%2F%2F"
NEXT_HOLDS_USER = re.compile(r"\s[^\s:@]{1,64}+:[^\s@]++@")
CLAUSE_ENDS = ".,:;)]'\""
END_OF_CLAUSE = re.compile(r"[\r\n;,)\]'\"]|:\s|\Z")
PATHS_ONLY = ("file", "sqlite")
WEB = ("http", "https")
RELATIVE_QUERY = re.compile(r"(\burl: /[^\s?]*+)\?\S*")
"""Of an address that requests tells without its host."""

SECRET_VARIABLE = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|(?<![A-Z])PASS(?![A-Z])|_PWD|TOKEN(?![A-Z])|SECRET|CREDENTIAL"
    r"|(?:ACCESS|API|PRIVATE|ENCRYPTION|ACCOUNT)_?KEY|SIGNATURE|COOKIE|AUTHORIZATION",
    re.IGNORECASE,
)
NOT_THE_VALUE = re.compile(
    r"(?:FILE|PATH|DIR|FOLDER|SOCK|TTL|SECONDS|MINUTES|HOURS|LENGTH|SIZE)$", re.IGNORECASE
)
SCHEME = re.compile(r"\b([a-z][a-z0-9+.-]{0,30})://", re.IGNORECASE)
HOLDS_PAIRS = re.compile(r"CONN|DSN|HEADER|URI|URL", re.IGNORECASE)
SWITCHES = {"true", "false", "none", "null", "yes", "no", "required", "optional"}
PAIR_OF_A_VARIABLE = re.compile(
    rf"{_NAME}[\w.-]{{0,40}}+[=:]\s?(?P<value>[^;&\s\"',}}]++)", re.IGNORECASE
)


def without_secrets(value: Any) -> Any:
    """Return a text, or a document with all its texts, without secrets; numbers and keys stay.

    Users, passwords and queries of addresses are cut out, also of addresses that were cut off or
    are malformed; values with a secret's name (`password=...`, `"token": "..."`, `Authorization:
    ...`) become `***`; and so do, wherever they stand, the values of environment variables that
    hold secrets, as they are, percent-encoded and in base64 with a user.

    Examples
    --------
    >>> without_secrets({"why": "token=abc at http://me:pw@host", "n": 1, "password": "x"})
    {'why': 'token=*** at http://host', 'n': 1, 'password': '***'}
    """
    if isinstance(value, str):
        return _hidden(value)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(one, str) and one and SECRET_NAME.search(str(key))
            else without_secrets(one)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(one) for one in value]
    return value


def _hidden(text: str) -> str:
    for known in _known_secrets():
        if known in text:
            text = text.replace(known, HIDDEN)
    text = _without_users(RELATIVE_QUERY.sub(r"\1", text))
    if "%40" in text:
        text = RUN.sub(_without_encoded_user, text)
    folded = text.lower()
    if any(part in folded for part in PARTS):  # the patterns alone take 20 times as long
        text = _without_values(_without_values(text, PAIR), FLAG)
        text = PRIVATE_KEY.sub(HIDDEN, text)
    text = USER_FLAG.sub(rf"\g<flag>\g<sep>{HIDDEN}", text)
    if "@" in text:
        text = BARE_USER.sub(f"{HIDDEN}@", text)
    return BEARER.sub(_without_bearer, text)


def _without_bearer(found: re.Match[str]) -> str:
    """Hide what follows Bearer or Basic, unless it is a word as in "Basic authentication"."""
    if found["scheme"].lower() == "basic" and found["value"].rstrip(".,:;").isalpha():
        return found[0]
    return f"{found['scheme']} {HIDDEN}"


# --- Secrets with a name ---


def _without_values(text: str, pattern: re.Pattern[str]) -> str:
    """Replace each value whose name is a secret's."""
    parts, position = [], 0
    found = pattern.search(text)
    while found:
        start = found.end()
        follows = _separates(found) and not ALREADY_HIDDEN.match(text, start)
        end = _end_of_value(text, found) if follows else start
        if end > start:
            parts += [text[position:start], HIDDEN]
            position = end
        found = pattern.search(text, max(start, end))
    return "".join([*parts, text[position:]])


def _separates(found: re.Match[str]) -> bool:
    """Say whether a value follows; a comma separates only what stands in quotes.

    No value follows the name of a file.
    """
    groups = found.groupdict()
    sep, closed = groups.get("sep"), groups.get("closed")
    if sep is None:
        return True
    name = found.string[found.start() : found.start("closed")]
    is_path = sep == "," and found.string[: found.start()].endswith("/")
    if is_path or NAME_OF_FILE.search(name):
        return False
    return sep != "," or bool(closed and closed[-1] in "\"'`")


def _end_of_value(text: str, found: re.Match[str]) -> int:
    start = found.end()
    quoted = QUOTE.match(text, start)
    if quoted:
        return _end_of_quoted(text, quoted)
    closing = BRACKETS.get(text[start : start + 1])
    if closing:
        end_of_list = text.find(closing, start)
        return end_of_list + 1 if end_of_list >= 0 else len(text)
    if found.groupdict().get("sep") == ">":
        end = END_OF_TAG
    elif found["line"]:
        end = END_OF_LINE
    else:
        end = END_OF_PHRASE if found["phrase"] else END_OF_WORD
    return _end_of(end, text, start)


def _end_of_quoted(text: str, quoted: re.Match[str]) -> int:
    """Return where a value in quotes ends: at the end of the text if they are never closed."""
    mark, start = quoted[1], quoted.end()
    if len(mark) == 1:
        closing = TO_QUOTE[mark].match(text, start)
        end = closing.end() if closing else -1
    else:
        end = text.find(mark, start)
        end = end + len(mark) if end >= 0 else -1
    return len(text) if end < 0 else _end_of(END_AFTER_QUOTE, text, end)


def _end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.search(text, start)
    return found.start() if found else len(text)


# --- Secrets in addresses ---


def _without_users(text: str) -> str:
    """Cut users, passwords and queries out of addresses, also of those that are no longer whole."""
    parts, position, run_end, last_at, question = [], 0, -1, -1, -1
    for found in ADDRESS.finditer(text):
        start = found.end()
        if start < position:
            continue
        if start > run_end:  # once per run of characters: they may hold thousands of addresses
            run_end = _end_of(END_OF_WORD, text, start)
            last_at, question = text.rfind("@", start, run_end), text.find("?", start, run_end)
        scheme = (found["scheme"] or found["bare"] or "").lower()
        host, end = start, run_end
        if scheme not in PATHS_ONLY or text[start : start + 1] != "/":
            host = max(last_at + 1, start)
            if not found["bare"]:
                host, end = _host(text, host, end, scheme)
        parts.append(text[position:start])
        position = host
        if end != run_end or 0 <= question < host:
            run_end, question = end, text.find("?", host, end)
        if question >= 0:
            parts.append(text[host:question])
            position = _end_of_query(text, question, end)
    return "".join([*parts, text[position:]])


def _without_encoded_user(run: re.Match[str]) -> str:
    """Cut the user out of a percent-encoded address, as it stands in another's query."""
    slashes, at = run[0].upper().find(ENCODED_SLASHES), run[0].rfind("%40")
    return (
        run[0][: slashes + len(ENCODED_SLASHES)] + run[0][at + 3 :] if -1 < slashes < at else run[0]
    )


def _host(text: str, start: int, end: int, scheme: str) -> tuple[int, int]:
    """Return where the host begins and the address ends, if a password has spaces or is cut off.

    Parameters
    ----------
    start, end
        Of what follows the last @ before the next space.
    """
    host_end = min(_end_of(END_OF_HOST, text, start), end)
    strange = not HOST_AND_PORT.match(text[start:host_end])
    after = text[end : end + LONGEST_SPACED].partition("://")[0]
    after = after if strange else after.partition("\n")[0]
    if strange or (host_end == end and (scheme not in WEB or NEXT_HOLDS_USER.match(after))):
        at = after.find("@")
        if at >= 0:
            new_end = _end_of(END_OF_WORD, text, end + at)
            return text.rfind("@", end, new_end) + 1, new_end
    if strange and scheme not in WEB and text[end - 1] not in CLAUSE_ENDS:
        end = _end_of(END_OF_CLAUSE, text, end)
    return (end if strange else start), end


def _end_of_query(text: str, question: int, end: int) -> int:
    """Return where a query ends: a secret at its end may have spaces, if another pair follows."""
    last = text[max(text.rfind("&", question, end), question) : end]
    after = text[end : end + LONGEST_SPACED].partition("\n")[0].partition("://")[0]
    more = re.search(r"&\w+=", after)
    if more and SECRET_NAME.search(last):
        return _end_of(END_OF_WORD, text, end + more.end())
    return end


# --- Secrets that the environment holds ---


def _known_secrets() -> tuple[str, ...]:
    """Return every form of the secrets in the environment and in the words of the command line."""
    return _forms(tuple(os.environ.items()), tuple(word for word in sys.argv if "://" in word))


@functools.lru_cache(maxsize=4)
def _forms(environment: tuple[tuple[str, str], ...], words: tuple[str, ...]) -> tuple[str, ...]:
    users = {value for name, value in environment if "USER" in name.upper() and value}
    secrets: set[str] = set()
    for name, value in environment:
        if _is_secret(name, value):
            secrets.add(value)
        if HOLDS_PAIRS.search(name):
            secrets.update(found["value"] for found in PAIR_OF_A_VARIABLE.finditer(value))
    for value in (*(value for _, value in environment if "://" in value), *words):
        for user, secret in _in_address(value):
            users.update({user, unquote(user)} - {""})
            secrets.update((secret, unquote(secret)))
    forms = {form for secret in secrets for form in _ways_to_write(secret, users)}
    # A folder of the paths that advice is made of is not hidden there.
    named = dict(environment)
    forms -= {
        part
        for path in (*map(named.get, ("HOME", "PWD")), sys.prefix)
        for part in (path or "").split("/")
    }
    return tuple(sorted((one for one in forms if len(one) >= SHORTEST_KNOWN), key=len)[::-1])


def _is_secret(name: str, value: str) -> bool:
    return bool(
        SECRET_VARIABLE.search(name)
        and not NOT_THE_VALUE.search(name)
        and name.upper() != "OLDPWD"
        and value.lower() not in SWITCHES
        and not ("CREDENTIAL" in name.upper() and value.startswith("/"))
    )


def _in_address(value: str) -> Iterator[tuple[str, str]]:
    """Give user and secret of the addresses in a value: one that it is, or several words."""
    for found in (
        SCHEME.search(one) for one in ([value] if SCHEME.match(value) else value.split())
    ):
        if not found or found[1].lower() in PATHS_ONLY:
            continue
        rest = found.string[found.end() :]
        user_and_password, at, _ = rest.rpartition("@")
        user, colon, password = user_and_password.partition(":")
        if colon and password:
            yield user, password
        elif at and _is_token(user):
            yield "", user
        for pair in re.split(r"[&;]", rest.partition("?")[2]):
            name, _, secret = pair.partition("=")
            if secret and SECRET_NAME.search(name):
                yield "", secret.rstrip("'\"")


def _is_token(user: str) -> bool:
    with_digits = any(char.isdigit() for char in user)
    return len(user) >= (SHORTEST_TOKEN_WITH_DIGITS if with_digits else SHORTEST_TOKEN)


def _ways_to_write(secret: str, users: set[str]) -> Iterator[str]:
    """Give a secret as it is, percent-encoded, as Python and JSON write it, and with a user."""
    if len(secret) < SHORTEST_KNOWN:
        return
    raw = os.fsencode(secret)
    encoded = {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    yield from (secret, *encoded)
    yield from (re.sub("%..", lambda found: found[0].lower(), one) for one in encoded)
    yield from (repr(secret)[1:-1], secret.replace("\\", "\\\\").replace('"', '\\"'))
    yield from (str(raw)[2:-1], secret.encode("unicode_escape", "replace").decode())
    for pair in (raw + b":", *(os.fsencode(user) + b":" + raw for user in (*users, ""))):
        yield base64.b64encode(pair).decode().rstrip("=")
        yield base64.urlsafe_b64encode(pair).decode().rstrip("=")


# --- Times and numbers ---


def now() -> str:
    """Return the local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def as_local_time(seconds: float) -> str:
    """Return a moment in the form of `now`."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def moment(at: str) -> str:
    """Return an ISO 8601 moment to the minute, as a page shows it."""
    return at[:16].replace("T", " ")


def aligned(rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a table of texts from outside, the first column to the left.

    Examples
    --------
    >>> aligned([["file", "error"], ["a.csv", "12.5"]])
    ['file   error', 'a.csv   12.5']
    """
    cells = [[line_start(first), *map(printable, rest)] for first, *rest in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip()
        for first, *rest in cells
    ]


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


def size_text(n_bytes: float) -> str:
    """Return a number of bytes in the unit that reads best, of 1000 each.

    Examples
    --------
    >>> size_text(0), size_text(8_312_000), size_text(2.5e12)
    ('0 bytes', '8.3 MB', '2500.0 GB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


def error_text(value: float, unit: str) -> str:
    """Return an error with its unit; see `number_text`.

    Examples
    --------
    >>> error_text(6.71, "%"), error_text(0.0066, "m")
    ('6.7 %', '0.0066 m')
    """
    return f"{number_text(value)} {unit}"
