"""Commands that messages advise carry the settings that were given."""

from __future__ import annotations

import argparse
from pathlib import Path

from retraining import advice
from retraining.advice import with_given_flags


def test_advice_keeps_what_follows_it(tmp_path: Path) -> None:
    """Flags go behind the word of the command; a script that takes fewer gets fewer."""
    advice.remember(argparse.Namespace(home="x", threshold="7", allow_pickle="true"), tmp_path)
    try:
        text = (
            "run: python register_first_model.py; or python pipeline_orchestrator.py rollback "
            "--to 3"
        )
        assert with_given_flags(text) == (
            f"run: python register_first_model.py --home {tmp_path}; or python "
            f"pipeline_orchestrator.py rollback --home {tmp_path} --threshold 7 --allow-pickle "
            "--to 3"
        )
    finally:
        advice.remember(argparse.Namespace(), tmp_path)
