"""How every script starts and ends: its commands, flags, log and exit status.

Flags are made from the fields of `Settings`. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from retraining import advice
from retraining.errors import (
    EXIT_ERROR,
    EXIT_STATUSES,
    EXIT_USAGE,
    LOG_TIME,
    PipelineError,
    StoppedBySignal,
    UsageError,
    stop_request,
)
from retraining.files import WRITABLE_BY_OTHERS
from retraining.registry.store import as_pipeline_error
from retraining.settings import (
    BOOLEAN_WORDS,
    JSON_SCHEMA_VERSION,
    Settings,
    environment_variable,
    flag,
)
from retraining.text import printable, without_secrets

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

SEVERAL = "several_"
"""Before the name of a setting, among parsed options: the text of a flag with several values."""

logger = logging.getLogger("pipeline")


# --- Flags ---


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints fit on one line of a mail."""

    def error(self, message: str) -> NoReturn:
        """Write the complaint and end with status 2."""
        text = printable(_on_one_line(message))
        self.exit(EXIT_USAGE, f"error: {text}; {self.prog} --help lists what there is\n")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Write the help, also where nobody reads it."""
        if file is None:
            _write_out(self.format_help())
        else:
            super().print_help(file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End, also where nobody reads the message."""
        try:
            super().exit(status, message)
        finally:
            _let_go_of_broken_streams()


def _on_one_line(message: str) -> str:
    return " ".join(message.split())


def add_settings(
    parser: argparse.ArgumentParser, only: tuple[str, ...] = (), several: tuple[str, ...] = ()
) -> None:
    """Add a flag for each setting, or only for those named, in a group of their own.

    Parameters
    ----------
    several
        Settings whose flags take several values, for `combinations`.
    """
    group = parser.add_argument_group("settings (command line over environment over default)")
    for field in dataclasses.fields(Settings):
        if only and field.name not in only:
            continue
        text = field.metadata["help"].replace("%", "%%")
        if field.metadata["kind"] is bool:
            group.add_argument(
                flag(field),
                action="store_const",
                const="true",
                help=f"{text} ({environment_variable(field)})",
            )
            continue
        unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
        metavar = field.name.split("_")[-1].upper()
        values = "; one value or several, separated by commas" if field.name in several else ""
        group.add_argument(
            flag(field),
            dest=f"{SEVERAL}{field.name}" if values else field.name,
            metavar=f"{metavar},..." if values else metavar,
            default=None,
            help=f"{text}{values}{unit} ({environment_variable(field)}{_default_text(field)})",
        )


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.name == "home" or field.default == "":
        return ""
    return "; the module's" if field.default is None else f"; {field.default}"


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
        # It names the flag; whoever set the variable looks for that.
        name, _, rest = str(error).partition(" ")
        raise UsageError(f"{sources.get(name, name)} {rest}") from error


def combinations(settings: Settings, options: argparse.Namespace) -> list[Settings]:
    """Return the settings with each combination of the values of the flags that take several.

    Raises
    ------
    UsageError
        If one of the values has the wrong type or is outside its range.
    """
    found = [settings]
    for field in dataclasses.fields(Settings):
        text = getattr(options, f"{SEVERAL}{field.name}", None)
        if text is not None:
            parts = [_converted(field, part.strip(), flag(field)) for part in text.split(",")]
            found = [
                dataclasses.replace(one, **{field.name: part})
                for one in found
                for part in dict.fromkeys(parts)
            ]
    return found


def _converted(field: dataclasses.Field[Any], text: str, source: str) -> Any:
    if field.name == "home":
        return _absolute(text, source)
    kind: Any = field.metadata["kind"]
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


# --- The process ---


def words_of(arguments: Sequence[str] | None) -> list[str]:
    """Return the words after the program's name.

    Parameters
    ----------
    arguments
        None for those of this process, which is made fit to work first: it may begin again.
    """
    if arguments is not None:
        return list(arguments)
    _open_closed_streams()
    _read_and_write_utf8()
    return sys.argv[1:]


def _open_closed_streams() -> None:
    """Let no file get the number of a standard stream that was closed by who started this."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def _read_and_write_utf8() -> None:
    """Begin again in UTF-8 mode where names would be read as ASCII or Latin.

    Notes
    -----
    The same file would have one name for cron and another one at a terminal, and the journal's
    names could not be found on the disk. What is printed stays in the encoding of the terminal.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"  # of all processes that this one starts, too
    shown_in = os.environ.get("PYTHONIOENCODING") or f"{sys.stdout.encoding}:backslashreplace"
    os.environ["PYTHONIOENCODING"] = shown_in
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _let_go_of_broken_streams() -> None:
    """Let Python not fail once more when it ends and flushes what nobody reads."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# --- Commands ---


@dataclass(frozen=True)
class Command:
    """A word of the command line, and what it stands for.

    Parameters
    ----------
    help
        What it does, in a few words.
    add_flags
        Adds flags of its own to those of the settings.
    work
        Does it, and returns the exit status.
    several
        Settings whose flags take several values; the work asks `combinations` for them.
    """

    name: str
    help: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    work: Callable[[Settings, argparse.Namespace], int]
    several: tuple[str, ...] = ()


def no_flags(_parser: argparse.ArgumentParser) -> None:
    """Add none: for a command that has the settings only."""


def main(
    commands: Sequence[Command], arguments: Sequence[str] | None, prog: str, description: str
) -> int:
    """Run the command that the first word names, without one the first; return the exit status.

    Parameters
    ----------
    arguments
        Words without the program's name; None for those of this process.
    """
    words = words_of(arguments)
    named = {command.name: command for command in commands}
    if not words or words[0] not in (*named, "-h", "--help"):
        words.insert(0, commands[0].name)
    options = _parser(commands, words[0], prog, description).parse_args(words)
    command = named[options.command]
    return run_command(lambda settings: command.work(settings, options), options)


def _parser(
    commands: Sequence[Command], chosen: str, prog: str, description: str
) -> argparse.ArgumentParser:
    statuses = (f"{status}: {meaning}" for status, meaning in EXIT_STATUSES.items())
    parser = OneLineParser(
        prog=prog, description=description, epilog=f"exit status: {'; '.join(statuses)}"
    )
    words = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in commands:
        of_command = words.add_parser(command.name, help=command.help, description=command.help)
        if command.name == chosen:  # those of the others would cost a quiet night a few ms
            add_settings(of_command, several=command.several)
            command.add_flags(of_command)
    return parser


def run_command(work: Callable[[Settings], int], options: argparse.Namespace) -> int:
    """Do the work with its settings and return the exit status.

    Parameters
    ----------
    options
        What a parser with `add_settings` returned.
    """
    os.umask(os.umask(0) | WRITABLE_BY_OTHERS)  # of what MLflow makes, too
    start_logging(quiet=getattr(options, "quiet", False))
    settings = None
    try:
        settings = read_settings(options)
        advice.remember(options, settings.home)
        stop_request.listen()
        return work(settings)
    except PipelineError as error:
        return _fail(error)
    except Exception as error:
        return _fail_unexpectedly(error, settings)
    finally:
        _let_go_of_broken_streams()


def _fail(error: PipelineError) -> int:
    """Write an expected failure as one line and return its exit status."""
    text = advice.with_given_flags(_on_one_line(str(error)))
    with contextlib.suppress(OSError):  # nobody reads it
        sys.stderr.write(f"error: {printable(text)}\n")
    return error.exit_status


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


# --- What is said ---

COLOURS = {"good": "32", "look": "33"}
"""Tone of an outcome -> green or yellow, as terminals number them."""


class _PrintableLines(logging.Formatter):
    """Writes each message on one line, harmless whatever stood in it; tracebacks keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line of a message."""
        return printable(advice.with_given_flags(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the lines of a traceback."""
        return self.formatStack(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """Return the lines of a stack, indented: none may look like a message of ours."""
        lines = without_secrets(stack_info).split("\n")  # whole: a secret may have a line break
        return "\n".join(f"  {printable(line)}" for line in lines)


def _printable_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Return the line of a package's warning, which may quote a recording."""
    return printable(f"{filename}:{lineno}: {category.__name__}: {message}") + "\n"


def start_logging(*, quiet: bool) -> None:
    """Send dated lines to standard error; only warnings and errors if quiet."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableLines("%(asctime)s %(levelname)s %(message)s", LOG_TIME))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    warnings.formatwarning = _printable_warning
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def print_result(
    message: str | Sequence[str], facts: Mapping[str, Any], *, as_json: bool, tone: str = ""
) -> None:
    """Print what a command found: lines for people, or one JSON document for programs.

    Parameters
    ----------
    message
        One line, or several.
    facts
        The document.
    as_json
        Which of them.
    tone
        A key of `COLOURS`: on a terminal the first words, up to the colon, have it.
    """
    lines = [message] if isinstance(message, str) else message
    text = "\n".join(printable(advice.with_given_flags(line)) for line in lines)
    if as_json:
        text = json.dumps({"schema_version": JSON_SCHEMA_VERSION, **without_secrets(facts)})
    elif sys.stdout is not None:
        text = _coloured(text, tone, sys.stdout)
    _write_out(f"{text}\n")


def _write_out(text: str) -> None:
    """Write to standard output, which may be closed, Latin, or read by nobody any more."""
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:  # what was done stays done
        pass
    except OSError as error:
        raise PipelineError(
            f"what was found cannot be written to standard output: {error.strerror}; all else is "
            "done"
        ) from error
    finally:
        _let_go_of_broken_streams()


def _coloured(message: str, tone: str, stream: TextIO) -> str:
    """Colour the first words for a person at a terminal; https://no-color.org switches it off."""
    head, colon, rest = message.partition(":")
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if tone not in COLOURS or not colon or plain or not stream.isatty():
        return message
    return f"\x1b[1;{COLOURS[tone]}m{head}{colon}\x1b[0m{rest}"
