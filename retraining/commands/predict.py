"""`predict`: what the production model says of recordings that nobody has checked."""

from __future__ import annotations

import argparse
import csv
import math
import numbers
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, EXIT_ERROR, PipelineError, stop_request
from retraining.estimates import Estimator, RecordingEstimate
from retraining.files import hash_bytes, read_regular_file
from retraining.registry import open_registry
from retraining.settings import Settings
from retraining.text import line_start, printable
from retraining.training import FILE, Training, load_training_module, unreadable_file
from retraining.typed_names import path_meant

if TYPE_CHECKING:
    import pandas as pd

PROBABILITY = "probability"
"""Column of a module's verdicts that is written with four decimals."""
FORMULA = re.compile(r"(^|;)(?=[\s'\"]*[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""What a spreadsheet may take for one: also after spaces, in full width, after its separator ;."""
NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)
KINDS_OF_NUMBERS_AND_TIMES = "biufmM"
JSON_DECIMALS = 10


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="one recording")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="text as it is, for a program: a spreadsheet would run what looks like a formula",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON: counts with their intervals, what is unsure or unlike, and all verdicts",
    )


def _work(settings: Settings, options: argparse.Namespace) -> int:
    # What a terminal obeys is never printed on one.
    raw = options.raw and not sys.stdout.isatty()
    return predict(settings, options.files, raw=raw, as_json=options.json)


def predict(
    settings: Settings, files: list[str], *, raw: bool = False, as_json: bool = False
) -> int:
    """Print the verdicts of one file after the other; a bad one is a line and exit status 1.

    Verdicts go to standard output as CSV, `raw` or harmless in a spreadsheet, or all in one JSON
    document; what is said of each file to standard error, for people.

    Raises
    ------
    PipelineError
        If there is no production model, if the module fails, or if nobody reads any more.
    """
    training = load_training_module(settings)
    registry = open_registry(settings)
    champion = registry.production.champion()
    model = registry.models.load(champion, training)
    calibration = registry.versions.before_labels(champion, training).calibration
    estimator = Estimator(training, model, calibration)
    exit_status, header = EXIT_DONE, ""
    found: list[dict[str, Any]] = []
    for file in files:
        stop_request.obey()
        try:
            # Whoever names a file on the command line may name a link to it.
            path = Path(os.path.realpath(path_meant(Path(file))))
            content = read_regular_file(path, settings.max_file_mb)
            rows = training.parse_unlabelled(content, file)
            verdicts = verdicts_of(training, model, rows)
        except (ValueError, OSError) as error:
            what = getattr(error, "strerror", None) or error
            problem = unreadable_file(file, what)
            exit_status = _refuse(problem)
            found.append({"file": file, "problem": problem})
            continue
        known, problems = estimator.of_each([(rows, file, hash_bytes(content))])
        for problem in problems.values():  # its verdicts are none the worse
            exit_status = _refuse(f"no estimate of {problem}")
        estimate = known[0] if known else RecordingEstimate(file, hash_bytes(content))
        said = (estimate.in_words(training.error_unit), in_words(training, rows, verdicts))
        line = f"{line_start(file)}: {'; '.join(one for one in said if one)}"
        if as_json:
            found.append(_as_facts(estimate, verdicts))
            _say(line)
            continue
        own_header, table = as_csv(verdicts, raw=raw)
        if header and own_header != header:
            columns = printable(own_header)
            raise training.breach(f"verdicts has other columns for {printable(file)}: {columns}")
        _write_out(table if header else f"{own_header}\n{table}")
        header = own_header
        _say(line)
    if as_json:
        print_result([], {"version": champion.number, "files": found}, as_json=True)
    return exit_status


def _as_facts(estimate: RecordingEstimate, verdicts: pd.DataFrame) -> dict[str, Any]:
    """Return what `--json` tells of a file."""
    from retraining.calibration import as_records

    facts = asdict(estimate)
    del facts["expected"]  # in no unit
    return {"file": facts.pop("name"), **facts, "verdicts": as_records(verdicts, JSON_DECIMALS)}


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
        return str(say(rows, verdicts))


def as_csv(verdicts: pd.DataFrame, *, raw: bool = False) -> tuple[str, str]:
    """Return the header and the lines of a table; any program may open it unless it is raw."""
    import pandas as pd

    cell = str if raw else _harmless
    table = pd.DataFrame({cell(str(name)): _cells(verdicts[name], cell) for name in verdicts})
    # A bare carriage return would begin a line of its own.
    quoting: Any = csv.QUOTE_NONNUMERIC if raw else csv.QUOTE_MINIMAL
    header = table.iloc[:0].to_csv(index=False, quoting=quoting).removesuffix("\n")
    return header, table.to_csv(index=False, header=False, quoting=quoting)


def _cells(column: pd.Series[Any], as_text: Callable[[str], str]) -> Any:
    import pandas as pd

    kind = column.dtype.kind
    if column.name == PROBABILITY and kind == "f":
        return ["" if math.isnan(share) else f"{share:.4f}" for share in column]
    if kind in KINDS_OF_NUMBERS_AND_TIMES:
        return column.to_numpy()
    missing = column.isna()
    cells = [
        one if lacks or isinstance(one, numbers.Number | pd.Timestamp) else as_text(str(one))
        for one, lacks in zip(column, missing, strict=True)
    ]
    return pd.Series(cells, dtype=object)


def _harmless(text: str) -> str:
    """Return a text without control characters, which no spreadsheet takes for a formula."""
    shown = printable(text)
    return shown if NUMBER.fullmatch(shown) else FORMULA.sub(r"\1'", shown)


def _refuse(message: str) -> int:
    _say(f"error: {message}")
    return EXIT_ERROR


def _say(message: str) -> None:
    sys.stderr.write(f"{printable(message)}\n")


def _write_out(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"  # a terminal may be Latin
    try:
        sys.stdout.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError as error:
        # Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise PipelineError("nobody reads standard output any more") from error


COMMAND = Command("predict", "print what production says of recordings", _add_flags, _work)
