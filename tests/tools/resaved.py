"""Ways to save a recording again, and what intake must call each of them.

Each way is what a spreadsheet, a script or a person makes of a file: bytes in, bytes out. `WAYS`
holds those of one recording, `MIXES` those of two. Some are only for the default training module,
because the strict reader of docs/own_model refuses what they write.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from retraining.ground_truth import PARKED
from retraining.intake import Intake
from retraining.journal import COPY, CORRECTION

NEW, DUPLICATE, PART, MIXED = "new", "duplicate", "part", "mixed"
WITHDRAWN, LEARNT, BAD = "withdrawn", "learnt", "bad"
BEGINNINGS = {
    "is a duplicate": DUPLICATE,
    "is a part of": PART,
    "is mixed with": MIXED,
    "was withdrawn": WITHDRAWN,
}
TRUE_WORDS = {"1", "1.0", "true", "true positive"}
BOTH, STEMS = ("stems", "grain"), ("stems",)


def outcomes(found: Intake) -> dict[str, str]:
    """Return what became of each file, by its name in new_gts/."""
    told = {one.path.name: NEW for one in found.files}
    told |= dict.fromkeys(found.learnt, LEARNT)
    told |= {one.source.rpartition("/")[2]: one.reason for one in found.replacements}
    for one in found.refusals:
        beginnings = [word for text, word in BEGINNINGS.items() if one.what.startswith(text)]
        told[one.name] = PARKED if one.kind == PARKED else (*beginnings, BAD)[0]
    return told


@dataclass(frozen=True)
class Columns:
    """How a training module calls what stands in its files.

    Parameters
    ----------
    numbers
        What was measured.
    label
        What people say.
    others
        Label -> another one.
    flags
        Columns of true and false.
    object_id, frame
        What renumbering changes; empty where there is no such column.
    """

    numbers: tuple[str, ...]
    label: str
    others: dict[str, str]
    flags: tuple[str, ...] = ()
    object_id: str = ""
    frame: str = ""


COLUMNS = {
    "stems": Columns(
        numbers=("centroids_x", "centroids_y", "aspect_ratio", "area", "scores"),
        label="ground_truth",
        others={"True": "False", "False": "True"},
        flags=("counted", "ground_truth"),
        object_id="object_id",
        frame="frames",
    ),
    "grain": Columns(
        numbers=("length_mm", "width_mm", "brightness", "moisture_percent"),
        label="quality",
        others={"sound": "mouldy", "mouldy": "broken", "broken": "sound"},
    ),
}

Change = Callable[[pd.DataFrame, Columns], pd.DataFrame]


@dataclass(frozen=True)
class Way:
    """One way to save a recording again.

    Parameters
    ----------
    name
        In words.
    make
        Takes the content and its columns.
    becomes
        What intake must call it, where the recording is in used_gts/.
    domains
        Whose reader can read it.
    is_rounded
        Whether numbers lose digits, so that whole contents no longer equal.
    """

    name: str
    make: Callable[[bytes, Columns], bytes]
    becomes: str = DUPLICATE
    domains: tuple[str, ...] = BOTH
    is_rounded: bool = False

    def __str__(self) -> str:
        """Name it in the ids of tests."""
        return self.name


# --- Cells ---


def cells(content: bytes) -> pd.DataFrame:
    """Return the cells of a file as text, under mended column names, without blank rows."""
    return _cells(content).copy()


@functools.lru_cache(maxsize=40)
def _cells(content: bytes) -> pd.DataFrame:
    table = pd.read_csv(
        io.BytesIO(content.removeprefix(codecs.BOM_UTF8)),
        dtype=str,
        keep_default_na=False,
        skipinitialspace=True,
    )
    table.columns = pd.Index([str(name).replace("+AF8-", "_").lower() for name in table])
    return table[(table != "").any(axis=1)].reset_index(drop=True)


def saved(table: pd.DataFrame, **values: Any) -> bytes:
    """Return a table as the bytes of a file."""
    text = table.to_csv(None, index=False, lineterminator="\n", **values)
    return str(text).encode()


def changed(change: Change) -> Callable[[bytes, Columns], bytes]:
    """Return what changes the cells of a file."""
    return lambda content, columns: saved(change(cells(content), columns))


def formatted(pattern: str, *, integers: bool = False) -> Change:
    """Return what writes numbers in another format."""

    def change(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
        table = table.copy()
        of_tracks = (columns.object_id, columns.frame) if integers and columns.frame else ()
        for name in (*columns.numbers, *of_tracks):
            filled = table[name] != ""
            values = table.loc[filled, name].astype(float)
            table.loc[filled, name] = [pattern % value for value in values]
        return table

    return change


def worded(true: str, false: str) -> Change:
    """Return what writes flags in other words."""

    def change(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
        table = table.copy()
        for name in columns.flags:
            table[name] = [
                "" if not word else true if word.lower() in TRUE_WORDS else false
                for word in table[name]
            ]
        return table

    return change


def on_every_row(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Write each object's flags on all of its rows."""
    table = table.copy()
    for name in columns.flags:
        known = table[name].where(table[name] != "")
        table[name] = known.groupby(table[columns.object_id]).transform("first").fillna("")
    return table


def on_first_row(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Write each object's label on its first row only."""
    table = on_every_row(table, columns)
    later = table.duplicated(columns.object_id)
    return table.assign(**{columns.label: table[columns.label].where(~later, "")})


def renumbered(table: pd.DataFrame, columns: Columns, step: int = 1) -> pd.DataFrame:
    """Give every object another number."""
    codes, _ = pd.factorize(table[columns.object_id].astype(float))
    return table.assign(**{columns.object_id: (step + len(codes) - codes).astype(str)})


def shifted(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Count frames from another begin."""
    frames = table[columns.frame].astype(float).astype(int) + 10_000
    return table.assign(**{columns.frame: frames.astype(str)})


def as_pandas_reads(content: bytes, _columns: Columns) -> bytes:
    """Read and write a file with pandas' defaults."""
    table = pd.read_csv(io.BytesIO(content), low_memory=False)
    return str(table.to_csv(index=False)).encode()


def with_blank_lines(content: bytes, blank: bytes) -> bytes:
    """Put blank lines among the rows and at the end."""
    lines = content.splitlines()
    middle = len(lines) // 2
    return b"\n".join([*lines[:middle], blank, *lines[middle:], blank, blank, b""])


def with_header(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Write the header another way."""
    header, line_end, rest = content.partition(b"\n")
    return change(header) + line_end + rest


def lines_ended(content: bytes, line_end: bytes) -> bytes:
    """End every line another way."""
    return line_end.join([*content.splitlines(), b""])


# --- Labels ---


def relabelled(share: float) -> Change:
    """Return what gives a share of the labelled objects, at least one, another label."""

    def change(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
        labels = table[columns.label]
        objects = table[columns.object_id] if columns.object_id else table.index.to_series()
        labelled = labels != ""
        if "counted" in table:
            counted = table["counted"].str.lower().isin(TRUE_WORDS)
            labelled &= objects.isin(objects[counted])
        candidates = objects[labelled].drop_duplicates()
        n_changed = max(int(share * len(candidates)), 1)
        chosen = candidates.sample(n_changed, random_state=7) if share < 1 else candidates
        others = [
            columns.others[word if word in columns.others else str(word.lower() in TRUE_WORDS)]
            if is_labelled
            else word
            for word, is_labelled in zip(labels, labelled, strict=True)
        ]
        return table.assign(**{columns.label: labels.where(~objects.isin(chosen), others)})

    return change


def with_session(table: pd.DataFrame, _columns: Columns) -> pd.DataFrame:
    """Say on which day it was recorded."""
    return table.assign(session="2026-06-01 morning")


# --- Parts and mixtures ---


def rows_chosen(choose: Callable[[pd.DataFrame], Any]) -> Change:
    """Return what leaves only some rows, each with its object's flags."""
    return lambda table, columns: on_every_row(table, columns).loc[choose]


def some_objects(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Leave every third object."""
    codes, _ = pd.factorize(table[columns.object_id].astype(float))
    return on_every_row(table, columns)[codes % 3 == 0]


def first_half(content: bytes, columns: Columns) -> bytes:
    """Leave the first half of the rows."""
    return changed(rows_chosen(lambda table: table.index < len(table) // 2))(content, columns)


def second_half(content: bytes, columns: Columns) -> bytes:
    """Leave the second half of the rows."""
    return changed(rows_chosen(lambda table: table.index >= len(table) // 2))(content, columns)


def joined(content: bytes, other: bytes, columns: Columns) -> bytes:
    """Write two recordings one below the other, with numbers that do not collide."""
    tables = [on_every_row(cells(one), columns) for one in (content, other)]
    if columns.object_id:
        tables = [
            renumbered(table, columns, step).pipe(worded("True", "False"), columns)
            for table, step in zip(tables, (1, 1_000_000), strict=True)
        ]
    return saved(pd.concat(tables))


def halves_joined(content: bytes, other: bytes, columns: Columns) -> bytes:
    """Write half of one recording and half of another one below each other."""
    return joined(first_half(content, columns), second_half(other, columns), columns)


def half_and_whole(content: bytes, other: bytes, columns: Columns) -> bytes:
    """Write half of one recording and the whole of another one below each other."""
    return joined(first_half(content, columns), other, columns)


# --- The tables ---

WAYS = (
    Way("line ends LF", lambda content, _: lines_ended(content, b"\n")),
    Way("line ends CRLF", lambda content, _: lines_ended(content, b"\r\n")),
    Way("line ends CR", lambda content, _: lines_ended(content, b"\r")),
    Way(
        "byte order mark",
        lambda content, _: codecs.BOM_UTF8 + content.removeprefix(codecs.BOM_UTF8),
    ),
    Way("a newline more", lambda content, _: content + b"\n"),
    Way("no newline at the end", lambda content, _: content.rstrip(b"\r\n")),
    Way("blank lines", lambda content, _: with_blank_lines(content, b"")),
    Way(
        "rows of commas",
        lambda content, _: with_blank_lines(content, b"," * content.splitlines()[0].count(b",")),
        domains=STEMS,
    ),
    Way(
        "header in upper case",
        lambda content, _: with_header(content, bytes.upper),
        domains=STEMS,
    ),
    Way(
        "header damaged by UTF-7",
        lambda content, _: with_header(content, lambda header: header.replace(b"_", b"+AF8-")),
        domains=STEMS,
    ),
    Way("saved by pandas", as_pandas_reads),
    Way(
        "with an index column",
        lambda content, _: str(cells(content).to_csv()).encode(),
    ),
    Way("flags TRUE and FALSE", changed(worded("TRUE", "FALSE")), domains=STEMS),
    Way("flags 1 and 0", changed(worded("1", "0")), domains=STEMS),
    Way(
        "flags in words",
        changed(worded("True Positive", "False Positive")),
        domains=STEMS,
    ),
    Way("columns in another order", changed(lambda table, _: table[table.columns[::-1]])),
    Way("three decimals", changed(formatted("%.3f"))),
    Way("two decimals", changed(formatted("%.2f"))),
    Way("one decimal", changed(formatted("%.1f")), is_rounded=True),
    Way("scientific", changed(formatted("%.6e", integers=True)), domains=STEMS),
    Way("integers as 12.0", changed(formatted("%r", integers=True)), domains=STEMS),
    Way("an extra column", changed(lambda table, _: table.assign(note="seen"))),
    Way("rows shuffled", changed(lambda table, _: table.sample(frac=1, random_state=1))),
    Way("rows upside down", changed(lambda table, _: table[::-1])),
    Way("cells quoted", lambda content, _: saved(cells(content), quoting=csv.QUOTE_ALL)),
    Way("spaces around cells", changed(lambda table, _: " " + table + " "), domains=STEMS),
    Way("labels on first rows only", changed(on_first_row), domains=STEMS),
    Way("objects renumbered", changed(renumbered), domains=STEMS),
    Way("frames counted from 10,000", changed(shifted), domains=STEMS),
    Way(
        "written twice",
        lambda content, columns: joined(content, content, columns),
    ),
    Way("session named", changed(with_session), domains=("grain",)),
    Way("session named", changed(with_session), CORRECTION, domains=STEMS),
    Way("one label corrected", changed(relabelled(0.0)), CORRECTION),
    Way("a tenth of the labels corrected", changed(relabelled(0.1)), CORRECTION),
    Way("half of the labels changed", changed(relabelled(0.5)), PARKED),
    Way("all labels inverted", changed(relabelled(1.0)), PARKED),
    Way("first half", first_half, PART),
    Way("second half", second_half, PART),
    Way("every second row", changed(rows_chosen(lambda table: table.index % 2 == 0)), PART),
    Way("a tenth of the rows", changed(rows_chosen(lambda table: table.index % 10 == 3)), PART),
    Way("some objects only", changed(some_objects), PART, domains=STEMS),
)
MIXES = (
    ("two joined", joined),
    ("half of two each", halves_joined),
    ("half of one and another one", half_and_whole),
)


def ways_of(domain: str) -> list[Way]:
    """Return the ways that the reader of a domain can read."""
    return [way for way in WAYS if domain in way.domains]


def after(ways: list[Way]) -> str:
    """Return what a recording is that was saved again in one way after the other.

    At most one of them changes labels, and one leaves rows out.
    """
    found = {way.becomes for way in ways}
    return next((one for one in (PART, PARKED, CORRECTION) if one in found), DUPLICATE)


def apply(ways: list[Way], content: bytes, columns: Columns) -> bytes:
    """Save a recording again in one way after the other."""
    for way in ways:
        content = way.make(content, columns)
    return content


def where_gone(becomes: str) -> str:
    """Return what intake calls a way where production learnt the recording and its file is gone."""
    return COPY if becomes == DUPLICATE else becomes
