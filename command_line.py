"""How every script starts and ends: its flags, its log, its signals and its exit status.

Flags are made from the fields of `Settings`. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from model_registry import as_pipeline_error
from pipeline_settings import (
    BOOLEAN_WORDS,
    EXIT_ERROR,
    EXIT_USAGE,
    JSON_SCHEMA_VERSION,
    PipelineError,
    Settings,
    StoppedBySignal,
    UsageError,
    environment_variable,
    flag,
)

logger = logging.getLogger("pipeline")


# --- Flags ---


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints fit on one line of a mail."""

    def error(self, message: str) -> NoReturn:
        """Write the complaint and end with status 2.

        Parameters
        ----------
        message
            What was wrong.
        """
        text = _on_one_line(message)
        self.exit(EXIT_USAGE, f"error: {text}; {self.prog} --help lists what there is\n")


def _on_one_line(message: str) -> str:
    return " ".join(message.split())


def add_settings(parser: argparse.ArgumentParser, only: tuple[str, ...] = ()) -> None:
    """Add a flag for each setting.

    Parameters
    ----------
    parser
        Gets the flags, in a group of their own.
    only
        Names of settings; all by default.
    """
    group = parser.add_argument_group("settings (command line over environment over default)")
    for field in dataclasses.fields(Settings):
        if only and field.name not in only:
            continue
        text = field.metadata["help"].replace("%", "%%")
        unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
        default = "" if field.name == "home" or field.default == "" else f"; {field.default}"
        if isinstance(field.default, bool):
            group.add_argument(
                flag(field),
                action="store_const",
                const="true",
                help=f"{text} ({environment_variable(field)})",
            )
            continue
        group.add_argument(
            flag(field),
            metavar=field.name.split("_")[-1].upper(),
            default=None,
            help=f"{text}{unit} ({environment_variable(field)}{default})",
        )


def read_settings(
    options: argparse.Namespace, environment: Mapping[str, str] | None = None
) -> Settings:
    """Build the settings from parsed options, the environment and the defaults.

    Parameters
    ----------
    options
        What a parser with `add_settings` returned.
    environment
        `os.environ` by default.

    Raises
    ------
    UsageError
        If a value has the wrong type or is outside its range.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field in dataclasses.fields(Settings):
        text, source = getattr(options, field.name, None), flag(field)
        if text is None:
            text, source = environment.get(environment_variable(field)), environment_variable(field)
        if text is not None and text != "":
            values[field.name] = _converted(field, text, source)
            sources[flag(field)] = source
    try:
        return Settings(**values)
    except UsageError as error:
        name, _, rest = str(error).partition(" ")
        raise UsageError(f"{sources.get(name, name)} {rest}") from error


def _converted(field: dataclasses.Field[Any], text: str, source: str) -> Any:
    if field.name == "home":
        return _absolute(text, source)
    kind: Any = type(field.default)
    if kind is bool:
        if text.lower() not in BOOLEAN_WORDS:
            raise UsageError(f"{source} {text!r}: must be true or false")
        return BOOLEAN_WORDS[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        what = {int: "an integer", float: "a number"}[kind]
        raise UsageError(f"{source} {text!r}: must be {what}") from error


def _absolute(text: str, source: str) -> Path:
    try:
        return Path(text).expanduser().resolve()
    except RuntimeError as error:  # no such user, or links in a circle
        raise UsageError(f"{source} {text!r}: must be a folder: {error}") from error


# --- Stopping between steps ---

LOG_TIME = "%Y-%m-%d %H:%M:%S"
STANDARD_ERROR = 2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Remembers a signal until the step at hand is done; a second one ends it at once."""

    def __init__(self) -> None:
        self._signal_number = 0

    def listen(self) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP, unless the caller had them ignored (nohup)."""
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._signal_number = number
        for each in STOP_SIGNALS:
            if signal.getsignal(each) == self._remember:
                signal.signal(each, signal.SIG_DFL)
        said = f"signal {number}: stopping after this step; once more to stop at once"
        # Not through the log: the signal may have come while that was writing.
        os.write(STANDARD_ERROR, f"{time.strftime(LOG_TIME)} WARNING {said}\n".encode())

    def obey(self) -> None:
        """Stop here if a signal came.

        Raises
        ------
        StoppedBySignal
            If one came.
        """
        if self._signal_number:
            raise StoppedBySignal(self._signal_number)


stop_request = StopRequest()


# --- Running a command ---

COLOURS = {"good": "32", "look": "33"}
"""Green and yellow, as terminals number them."""


def run_command(command: Callable[[Settings], int], options: argparse.Namespace) -> int:
    """Run a command with its settings and return the exit status.

    Parameters
    ----------
    command
        What to do.
    options
        What a parser with `add_settings` returned.
    """
    start_logging(quiet=getattr(options, "quiet", False))
    settings = None
    try:
        settings = read_settings(options)
        stop_request.listen()
        return command(settings)
    except PipelineError as error:
        return _fail(error)
    except Exception as error:
        return _fail_unexpectedly(error, settings)


def start_logging(*, quiet: bool) -> None:
    """Send dated lines to standard error.

    Parameters
    ----------
    quiet
        Warnings and errors only.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt=LOG_TIME,
    )
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def _fail_unexpectedly(error: Exception, settings: Settings | None) -> int:
    """Say in one line what went wrong outside our code; a bug of ours keeps its traceback."""
    try:
        stop_request.obey()
    except StoppedBySignal as stopped:
        return _fail(stopped)
    known = as_pipeline_error(error, settings) if settings else None
    if known is not None:
        return _fail(known)
    logger.error("unexpected failure, please report it", exc_info=error)
    return EXIT_ERROR


def _fail(error: PipelineError) -> int:
    """Write an expected failure as one line and return its exit status."""
    sys.stderr.write(f"error: {_on_one_line(str(error))}\n")
    return error.exit_status


def print_result(message: str, facts: Mapping[str, Any], *, as_json: bool, tone: str = "") -> None:
    """Print what a command found: one text, or one JSON document.

    Parameters
    ----------
    message
        For people.
    facts
        For programs.
    as_json
        Which of them.
    tone
        A key of `COLOURS`: on a terminal the message's first words, up to the colon, have it.
    """
    document = {"schema_version": JSON_SCHEMA_VERSION, **facts}
    text = json.dumps(document) if as_json else _coloured(message, tone, sys.stdout)
    encoding = sys.stdout.encoding or "utf-8"  # names may be bytes, and a terminal may be Latin
    sys.stdout.write(text.encode(encoding, errors="backslashreplace").decode(encoding) + "\n")


def _coloured(message: str, tone: str, stream: TextIO) -> str:
    """Colour the first words for a person at a terminal; https://no-color.org switches it off."""
    head, colon, rest = message.partition(":")
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if tone not in COLOURS or not colon or plain or not stream.isatty():
        return message
    return f"\x1b[1;{COLOURS[tone]}m{head}{colon}\x1b[0m{rest}"
