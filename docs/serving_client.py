"""Ask a served model how many objects of each recording are real stems.

Usage::

    .venv/bin/python docs/serving_client.py http://127.0.0.1:5001 FILE...
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pandas as pd
import requests


def shown(text: object) -> str:
    """Return a text on one line: what a server or a file's name says moves no cursor."""
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in str(text))


def reason(answer: requests.Response) -> str:
    """Say in one line why a request was refused: MLflow puts it at the end of a traceback."""
    try:
        complaint = answer.json()
        text = complaint.get("stack_trace") or complaint.get("message") or answer.text
    except (ValueError, AttributeError):
        text = answer.text
    return (str(text).strip().splitlines() or ["no reason"])[-1]


def count_stems(address: str, path: Path) -> int:
    """Send a recording as it is and count the objects that the answer calls stems."""
    try:
        content = path.read_bytes()
        answer = requests.post(
            f"{address}/invocations",
            data=content,
            headers={"Content-Type": "text/csv"},
            timeout=60,
        )
    except OSError as error:  # of the file or of the network
        sys.exit(shown(f"error: {path}: {error}"))
    if not answer.ok:
        sys.exit(shown(f"error: {path}: {answer.status_code}: {reason(answer)}"))
    rows = pd.read_csv(io.BytesIO(content))
    # Headers may be damaged; the model mends them in the same way.
    rows.columns = rows.columns.str.replace("+AF8-", "_").str.strip().str.lower()
    return int(rows.loc[answer.json()["predictions"], "object_id"].nunique())


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(f"{shown(name)}: {count_stems(sys.argv[1], Path(name))} stems")
