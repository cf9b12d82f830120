"""How text from outside is shown, and how many digits an error has."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from urllib.parse import quote, quote_plus

import pytest

from retraining.text import (
    as_local_time,
    error_text,
    now,
    number_text,
    printable,
    without_secrets,
)


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


class TestInvisible:
    """Characters that show nothing, or show something else than they are."""

    @pytest.mark.parametrize(
        "char",
        [
            *("\u034f", "\u115f", "\u1160", "\u17b4", "\u180b", "\u2800", "\u3164", "\uffa0"),
            *("\ufe0f", "\U000e0100", "\U000e0041", "\u2066", "\u200d", "\ufeff", "\u00ad"),
            *("\u2028", "\u2029", "\u0085", "\x9b", "\x90", "\x1b", "\x00", "\u00a0", "\u3000"),
        ],
    )
    def test_nothing_hides_in_a_name(self, char: str) -> None:
        """Two names that look alike are not two files with one name."""
        shown = printable(f"a{char}b")
        assert shown == f"a{char.encode('unicode_escape').decode()}b"
        assert printable(shown) == shown

    def test_an_exception_that_cannot_say_what_it_is_is_named(self) -> None:
        """Its own code may fail."""

        class Silent(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text")

        assert printable(Silent()) == "Silent"


SECRET = "hunter2-S3CR3T"
HOLDING_A_SECRET = {
    "in a query": "GET http://host/x?password={} failed",
    "in a query after another": "http://host/x?a=1&token={}&b=2",
    "in a relative query": "Max retries exceeded with url: /x?a=1&token={} (Caused by",
    "in a query alone": "bad request: ?sig={}&se=2026",
    "in a fragment": "http://host/x#access_token={}",
    "with a space": "postgresql://me:{} and more@db/mlflow",
    "before a space": "postgresql://me:pa ss {}@db/mlflow refused",
    "after digits and a space": "postgresql://me:123 {}@db refused",
    "with an at": "postgresql://me:{}@{}@db/mlflow",
    "with an at and a space": "postgresql://me:p@ss {}@db refused",
    "with a colon": "postgresql://me:a:{}@db/mlflow",
    "with a slash": "http://me:12/{}@host/x",
    "with a hash": "http://me:a#{}@host/x",
    "with a question mark": "http://me:a?{}@host/x",
    "with a quote": '"http://me:a\'{}@host/x"',
    "percent-encoded": "http://me:%40%3A{}@host/x",
    "a token alone": "fatal: https://{}@git.example.org/x",
    "a token with a slash": "https://a/{}@git.example.org/x",
    "cut off": "no store at postgresql://me:{}",
    "cut off after a slash": "no store at postgresql://me:a/{}",
    "cut off beside another": "http://host/x,http://me:{}",
    "without slashes": "cannot parse postgresql:me:{}@db/x",
    "with one slash": "cannot parse mysql+pymysql:/me:{}@db/x",
    "with three slashes": "cannot parse postgresql:///me:{}@db/x",
    "in an encoded address": "next=http%3A%2F%2Fme%3A{}%40host",
    "no user": "redis://:{}@cache:6379/0",
    "key=value": "could not connect: host=db password={} dbname=x",
    "key = value": "token = {}",
    "Key: value": "X-Api-Key: {}",
    "json": '{{"api_key": "{}", "x": 1}}',
    "json with a space": '{{"password": "two words {}", "x": 1}}',
    "json in json": '{{\\"secret\\": \\"{}\\"}}',
    "compact json": '{{"x":1,"clientSecret":"{}"}}',
    "repr": "{{'aws_secret_access_key': 'a\\'b {}'}}",
    "bytes": "headers {{b'Authorization': b'Bearer {}'}}",
    "pairs": "[('x', '1'), ('Authorization', 'Basic {}')]",
    "quotes that never end": 'password="{} and more',
    "without quotes, with spaces": "password=correct horse {}",
    "xml": "<SessionToken>{}</SessionToken>",
    "bearer": "Authorization: Bearer {}",
    "bearer alone": "sent 'Bearer {}'",
    "basic": "Proxy-Authorization: Basic {}",
    "digest": 'Authorization: Digest username="me", response="{}"',
    "cookie": "Cookie: a=b; session={}",
    "set-cookie": "set-cookie: session={}; Path=/",
    "a flag": "command: curl --oauth2-bearer-token {} http://x",
    "a flag in a list": "['psql', '--password', '{}', 'x']",
    "an azure key": "DefaultEndpointsProtocol=https;AccountName=x;AccountKey={};Suffix=y",
    "signature": "https://s3/b/k?X-Amz-Credential=a&X-Amz-Signature={}",
    "credential": "Credential={}/20260101/eu/s3",
    "sas": "sas={}",
    "passwd": "PGPASSWD={}",
    "pwd": "Server=x;Uid=y;Pwd={};",
    "an encoded pair": "next=x%3Fpassword%3D{}%26a=1",
    "html": "&quot;password&quot;:&quot;{}&quot;",
    "a key": "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    "curl's user": "curl -u me:{} https://host/x",
    "curl's user in a list": "['curl', '--user', 'me:{}', 'x']",
    "without a scheme": "cannot reach me:{}@db:5432/mlflow",
    "cut off with a space": "postgresql://me:my {}",
    "with a line break": "http://me:a\n{}@host/x",
    "a user with a space": "http://a b:{}@host/x",
    "a user of a file": "sqlite://me:{}@host/x",
    "in brackets": "credentials=('me', '{}')",
    "in an object": '{{"password": {{"value": "{}"}}}}',
    "full width": "password\uff1d{}",
    "bearer with a colon": "BEARER: {}",
}


HOSTILE = [
    *("http://", "//", "a//b", "http:", "http://a@", "://:", "x://a:b", "http%3A%2F%2F"),
    *("password", "token=", 'token="', "token\\", "secret: ", "a.", "-", "-a ", "--token "),
    *("url: /", "url: /?", "Bearer ", "Basic a", "\\", '"', "'token',", "http://a:b ", "@"),
    *("postgresql://a ", "<token>", "cookie:", "password=a b", "?token=a ", "&a=", "  "),
    *("a:", "a:b@", "-u a:", "-----BEGIN PRIVATE KEY-----", "token=(", "http://a:b c:d", "%3D%40"),
    *("password%3D", "&quot;", "x://a a:", "http://a b:c@ "),
]


class TestSecrets:
    """What leaves the process, wherever it goes, holds no secret."""

    @pytest.mark.parametrize("how", HOLDING_A_SECRET)
    def test_a_secret_does_not_get_out(self, how: str) -> None:
        """However it is written; a second look changes nothing."""
        text = HOLDING_A_SECRET[how].replace("{{", "{").replace("}}", "}").replace("{}", SECRET)
        assert SECRET in text
        shown = without_secrets(text)
        assert SECRET not in shown
        assert "S3CR3T" not in printable(text)
        assert without_secrets(shown) == shown
        assert all(SECRET[:4] not in printable(text, longest) for longest in range(80))

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("host=db password=secret dbname=x", "host=db password=*** dbname=x"),
            ("Authorization: Bearer abc", "Authorization: ***"),
            ('{"token": "a b", "x": 1}', '{"token": ***, "x": 1}'),
            (
                "the server http://host:5000 refused: a@b",
                "the server http://host:5000 refused: a@b",
            ),
            ("http://host:5000: timed out", "http://host:5000: timed out"),
            ("at postgresql://me:SECRETPA; run it", "at postgresql:// run it"),
            ("no store postgresql://me:SEC is there; run it", "no store postgresql://; run it"),
            ("12:30:45 a@b.csv", "12:30:45 a@b.csv"),
            ("rec:1@2.csv and 'sort -u a b'", "rec:1@2.csv and 'sort -u a b'"),
            ("tcp://a:8786,tcp://b:8787", "tcp://a:8786,tcp://b:8787"),
            ("no file 'password.csv', it holds: a", "no file 'password.csv', it holds: a"),
            ("no '../etc/passwd', neither here", "no '../etc/passwd', neither here"),
            ("secret_garden.csv: column a", "secret_garden.csv: column a"),
            ("http://[::1]:5000/x", "http://[::1]:5000/x"),
            ("sqlite:////srv/st@ems/mlflow.db", "sqlite:////srv/st@ems/mlflow.db"),
            ("models:/Stems@production", "models:/Stems@production"),
            ("password authentication failed for user me", ""),
            ("Basic authentication failed", ""),
            ("no token: ***", "no token: ***"),
            ("srv//a@b.csv", "srv//a@b.csv"),
            ("KeyError: 'secret'", "KeyError: 'secret'"),
            ("wrong signature", "wrong signature"),
        ],
    )
    def test_the_rest_can_still_be_read(self, text: str, shown: str) -> None:
        """Who looks for a fault needs the address and the words around it."""
        assert printable(text) == (shown or text)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MLFLOW_TRACKING_PASSWORD", "correct horse"),
            ("MLFLOW_TRACKING_TOKEN", "a+b/c=d"),
            ("AWS_SECRET_ACCESS_KEY", "/abc/d+ef"),
            ("OPENAI_API_KEY", "sk-1234"),
            ("DB_PASSWD", "Pässword"),
            ("MYSQL_PWD", 'quo"te\\'),
            ("WEBHOOK_SECRET", "a secret"),
            ("AZURE_CREDENTIAL", "cred-1"),
            ("pgpassword", "lower"),
        ],
    )
    def test_the_values_of_secret_variables_are_replaced_wherever_they_are(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As they are, percent-encoded, in JSON, and with a user in base64."""
        monkeypatch.setenv(name, value)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        both = base64.b64encode(f"me:{value}".encode()).decode()
        for form in (
            *(value, quote(value), quote(value, safe=""), quote_plus(value)),
            *(
                re.sub("%..", lambda found: found[0].lower(), quote(value)),
                json.dumps(value, ensure_ascii=False)[1:-1],
                both,
            ),
        ):
            shown = printable(f"said <{form}> of it")
            assert form not in shown
            assert shown == "said <***> of it" or form == both

    def test_what_a_variable_with_an_address_hides_is_replaced_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its user and password, decoded, and the secrets of its query; not its other parts."""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:p%40ss%20word@db/x?ssl=require")
        monkeypatch.setenv("HTTPS_PROXY", "http://token-1234567@proxy:3128")
        monkeypatch.setenv("PIPELINE_ON_ATTENTION", "curl https://hook/x?token=abcd-efgh&a=other")
        both = base64.b64encode(b"me:p@ss word").decode().rstrip("=")
        text = f"p@ss word, p%40ss%20word, {both}, token-1234567, abcd-efgh"
        assert printable(text) == "***, ***, ***, ***, ***"
        assert printable("require other me db proxy") == "require other me db proxy"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("PWD", "/srv/stems"),
            ("TOKENIZERS_PARALLELISM", "false"),
            ("MAX_TOKENS", "4096"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/srv/key.json"),
            ("USE_TOKEN", "true"),
            ("DB_PASSWORD", "abc"),
        ],
    )
    def test_what_is_no_secret_stays(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Folders, switches and numbers; three letters stand in too many words."""
        monkeypatch.setenv(name, value)
        assert printable(f"at {value} now") == f"at {value} now"

    def test_documents_keep_their_keys_and_numbers(self) -> None:
        """Only strings are looked at, however deep."""
        document = {
            "n": 1,
            "none": None,
            "texts": ["a", {"why": f"http://me:{SECRET}@h/x"}, (f"token={SECRET}", 2.5, True)],
            "password": SECRET,
        }
        assert without_secrets(document) == {
            "n": 1,
            "none": None,
            "texts": ["a", {"why": "http://h/x"}, ["token=***", 2.5, True]],
            "password": "***",
        }

    def test_hostile_text_takes_no_time(self) -> None:
        """100 kB of each kind."""
        began = time.process_time()
        for part in HOSTILE:
            printable(part * (100_000 // len(part)))
        assert time.process_time() - began < 0.2 * len(HOSTILE)

    @pytest.mark.slow
    @pytest.mark.sampled(0.1)
    @pytest.mark.parametrize("part", HOSTILE)
    @pytest.mark.parametrize("before", ["", "password=", "http://me:"])
    def test_a_megabyte_of_hostile_text_takes_no_time(self, part: str, before: str) -> None:
        """No pattern goes over the same part again and again."""
        text = before + part * (1_000_000 // len(part)) + " @"
        began = time.process_time()
        printable(text)
        assert time.process_time() - began < 2


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


def test_a_secret_that_is_a_folder_of_the_home_hides_no_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is to be typed must be read; such a word is no secret any more."""
    monkeypatch.setenv("DB_PASSWORD", "stems")
    monkeypatch.setenv("HOME", "/srv/stems")
    assert printable("--home /srv/stems/one") == "--home /srv/stems/one"
    assert printable("password=stems") == "password=***"
