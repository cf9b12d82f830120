"""`predict`: what the production model says of recordings that nobody has checked."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.command_line import Command
from retraining.errors import EXIT_DONE, EXIT_ERROR, PipelineError, stop_request
from retraining.files import read_regular_file
from retraining.registry import open_registry
from retraining.settings import Settings
from retraining.text import printable
from retraining.training import FILE, Training, load_training_module, unreadable_file

if TYPE_CHECKING:
    import pandas as pd

PROBABILITY = "probability"
"""Column of a module's verdicts that is written with four decimals."""
STARTS_OF_FORMULAS = ("=", "+", "-", "@")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="one recording")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    return predict(settings, options.files)


def predict(settings: Settings, files: list[str]) -> int:
    """Print the verdicts of one file after the other; a bad one is a line and exit status 1.

    Verdicts go to standard output as CSV, for programs; what is said of each file to standard
    error, for people.

    Raises
    ------
    PipelineError
        If there is no production model, if the module fails, or if nobody reads any more.
    """
    training = load_training_module(settings)
    registry = open_registry(settings)
    model = registry.models.load(registry.production.champion(), training)
    exit_status, header = EXIT_DONE, ""
    for file in files:
        stop_request.obey()
        try:
            # Whoever names a file on the command line may name a link to it.
            content = read_regular_file(Path(os.path.realpath(file)), settings.max_file_mb)
            rows = training.parse_unlabelled(content, file)
            verdicts = verdicts_of(training, model, rows)
        except (ValueError, OSError) as error:
            what = getattr(error, "strerror", None) or error
            exit_status = _refuse(unreadable_file(file, what))
            continue
        own_header, table = _as_csv(verdicts)
        if header and own_header != header:
            raise training.breach(f"verdicts has other columns for {printable(file)}: {own_header}")
        _write_out(table if header else f"{own_header}\n{table}")
        header = own_header
        _say(f"{printable(file)}: {in_words(training, rows, verdicts)}")
    return exit_status


def verdicts_of(training: Training, model: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """Return what the module says of a recording; by default the prediction of each row.

    Raises
    ------
    ValueError
        If the model refuses the rows.
    """
    import pandas as pd

    verdicts = training.said("verdicts")
    if verdicts is not None:
        with training.mistakes_told("verdicts", but=(ValueError,)):
            table = verdicts(rows, model)
        if not hasattr(table, "columns"):
            raise training.breach(f"verdicts returned no table but {type(table).__name__}")
        return table
    (predicted,) = training.predictions(model, [rows])
    numbers = range(1, len(rows) + 1)
    return pd.DataFrame({FILE: rows[FILE].to_numpy(), "row": numbers, "prediction": predicted})


def in_words(training: Training, rows: pd.DataFrame, verdicts: pd.DataFrame) -> str:
    """Return what the module says of a recording and its verdicts; by default how many rows."""
    say = training.said("verdicts_in_words")
    if say is None:
        return f"{len(rows)} rows"
    with training.mistakes_told("verdicts_in_words"):
        return printable(say(rows, verdicts))


def _as_csv(verdicts: pd.DataFrame) -> tuple[str, str]:
    """Return the header and the lines of a table that any program may open."""
    import pandas as pd

    table = pd.DataFrame({str(name): _cells(verdicts[name]) for name in verdicts})
    header = table.iloc[:0].to_csv(index=False).strip("\n")
    return printable(header), table.to_csv(index=False, header=False)


def _cells(column: pd.Series[Any]) -> Any:
    if column.name == PROBABILITY:
        return ["" if math.isnan(share) else f"{share:.4f}" for share in column]
    if column.dtype.kind in "biuf":
        return column.to_numpy()
    return [_harmless(cell) if isinstance(cell, str) else cell for cell in column]


def _harmless(text: str) -> str:
    """Return a text without control characters, which no spreadsheet takes for a formula."""
    shown = printable(text)
    is_formula = shown.startswith(STARTS_OF_FORMULAS) and not _is_number(shown)
    return f"'{shown}" if is_formula else shown


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _refuse(message: str) -> int:
    _say(f"error: {message}")
    return EXIT_ERROR


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def _write_out(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"  # a terminal may be Latin
    try:
        sys.stdout.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError as error:
        # Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise PipelineError("nobody reads standard output any more") from error


COMMAND = Command("predict", "print what production says of recordings, as CSV", _add_flags, _work)
