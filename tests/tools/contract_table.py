"""Write the contract with training modules into docs/own_model.md, from the table in the code.

Usage::

    python tests/tools/contract_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "own_model.md"
BEGIN, END = "<!-- contract: make contract-table writes this part -->", "<!-- end of contract -->"
sys.path.insert(0, str(ROOT))

from retraining.contract import CONTRACT, NEEDED, Entry


def contract_tables() -> str:
    """Return what a module must have and may have, as two tables."""
    needed = [entry for entry in CONTRACT if entry.default is NEEDED]
    optional = [entry for entry in CONTRACT if entry.default is not NEEDED]
    lines = ["| needed | type | what it is |", "|---|---|---|"]
    lines += [f"| `{one.signature}` | {_type(one)} | {one.words} |" for one in needed]
    lines += ["", "| optional | type | default | what it is |", "|---|---|---|---|"]
    lines += [
        f"| `{one.signature}` | {_type(one)} | {_default(one)} | {one.words} |" for one in optional
    ]
    return "\n".join(lines)


def _type(entry: Entry) -> str:
    return entry.kind if isinstance(entry.kind, str) else "function"


def _default(entry: Entry) -> str:
    if entry.default is None or entry.default in ("", ()):
        return "none"
    return f"`{entry.default}`"


def parts(document: str) -> tuple[str, str, str]:
    """Return what stands before, in and behind the generated part of the document."""
    before, _, rest = document.partition(f"{BEGIN}\n\n")
    inside, _, behind = rest.partition(f"\n\n{END}")
    return before, inside, behind


def main() -> None:
    """Write the tables into the document."""
    before, _, behind = parts(DOCUMENT.read_text())
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{contract_tables()}\n\n{END}{behind}")


if __name__ == "__main__":
    main()
