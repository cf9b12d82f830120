"""How text from outside is shown, and how many digits an error has."""

from __future__ import annotations

import math

import pytest

from retraining.text import as_local_time, error_text, now, number_text, printable


class TestPrintable:
    """Harmless on a terminal, in a log and on a page; without secrets."""

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain", "plain"),
            ("Grün 50 % ✓", "Grün 50 % ✓"),
            ("two\nlines\r\n", r"two\nlines\r\n"),
            ("tab\tbell\a", r"tab\tbell\x07"),
            ("\x1b[2Jgone", r"\x1b[2Jgone"),
            ("\x00\x7f\x9b31m", r"\x00\x7f\x9b31m"),
            ("a\u2028b\u202ecsv.exe", r"a\u2028b\u202ecsv.exe"),
            ("zero\u200bwidth", r"zero\u200bwidth"),
            ("caf\udce9.csv", r"caf\udce9.csv"),
            (b"bytes\xff", r"b'bytes\xff'"),
            (ValueError("bad\n\x1b[31mred"), r"bad\n\x1b[31mred"),
            (None, "None"),
        ],
    )
    def test_control_characters_and_stray_bytes_become_escapes(
        self, text: object, shown: str
    ) -> None:
        """Nothing that moves a cursor, breaks a line, turns the reading or cannot be encoded."""
        assert printable(text) == shown
        shown.encode()
        assert printable(shown) == shown

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("http://me:secret@host:5000/x", "http://host:5000/x"),
            ("postgresql://me:secret@db/mlflow", "postgresql://db/mlflow"),
            ("postgresql://me:a/secret@db/mlflow", "postgresql://db/mlflow"),
            ("postgresql://me:a?secret@db/mlflow", "postgresql://db/mlflow"),
            ("postgresql://me:secret@@db/mlflow", "postgresql://db/mlflow"),
            ("postgresql+psycopg2://token-secret@db/x", "postgresql+psycopg2://db/x"),
            ("http://host/x?token=secret", "http://host/x"),
            ("http://me:secret@host/x?token=secret&a=1 failed", "http://host/x failed"),
            ("see (https://s3/b/key?X-Amz-Signature=secret) twice", "see (https://s3/b/key twice"),
            ("with url: /b/key?X-Amz-Signature=secret (Caused by", "with url: /b/key (Caused by"),
            ("one http://me:secret@a/ two http://me:secret@b/", "one http://a/ two http://b/"),
        ],
    )
    def test_users_passwords_and_query_strings_are_cut_out(self, text: str, shown: str) -> None:
        """Wherever an address stands in the text."""
        assert printable(text) == shown

    @pytest.mark.parametrize(
        "text", ["rec?take=2.csv", "a@b.csv", "why? because", "/gts/a?b=1.csv"]
    )
    def test_a_name_that_is_no_address_is_shown_whole(self, text: str) -> None:
        """An operator looks for that very file."""
        assert printable(text) == text

    def test_secrets_are_cut_out_before_the_text_is_cut_short(self) -> None:
        """Where the end of a password, or of a query, is beyond the end of what is shown."""
        password = "http://me:secret" + "s" * 100 + "@host/x"
        assert printable(password, 20) == "http://host/x"
        assert printable("x" * 10 + " " + password, 30) == "x" * 10 + " http://host/x"
        assert printable("http://host/x?" + "s" * 100, 20) == "http://host/x"

    @pytest.mark.parametrize("longest", [0, 1, 5, 30])
    def test_escapes_do_not_make_it_longer_than_allowed(self, longest: int) -> None:
        """One control character is four, or six."""
        assert len(printable("\x1b" * 30, longest)) == longest


class TestNumbers:
    """Every error shows that it is one."""

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0, "0.0"),
            (12.34, "12.3"),
            (1234.56, "1234.6"),
            (1.0, "1.0"),
            (0.5, "0.50"),
            (0.0066, "0.0066"),
            (0.00662, "0.0066"),
            (-0.0066, "-0.0066"),
            (0.000123, "0.00012"),
            (math.nan, "nan"),
            (math.inf, "inf"),
        ],
    )
    def test_a_number_shows_two_of_its_digits(self, value: float, text: str) -> None:
        """A loss of 0.0066 m must not read 0.0; nothing and infinity are told as they are."""
        assert number_text(value) == text

    def test_an_error_has_its_unit(self) -> None:
        """As the training module names it."""
        assert error_text(0.0066, "m") == "0.0066 m"
        assert error_text(6.71, "%") == "6.7 %"


def test_times_tell_their_offset() -> None:
    """A log that is read in another country is still read right."""
    assert as_local_time(0)[:2] in ("19",)
    for text in (now(), as_local_time(1e9)):
        assert text[10] == "T"
        assert text[19] in "+-"
