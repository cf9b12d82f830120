"""What a store's refusal means: a login page, a certificate, a size limit. It comes again.

Whatever is none of these may be an outage: `store.is_outage` decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from retraining.registry import exchanges
from retraining.text import printable

UNAVAILABLE = (408, 425, 429)
"""Statuses of 4xx that may be gone at the next run."""
NOT_FOUND = 404
"""Whoever asked knows best what is missing."""
STATUS = re.compile(r"failed with error code (\d{3}) != ")
"""How MLflow tells the status of an answer that is not its own."""
NOT_JSON = re.compile(r"was not in a valid JSON format\. Response body: '\s*(\S)")
TUNNEL = re.compile(r"Tunnel connection failed: (4\d\d[^'\")]*)")
TOO_MANY_REDIRECTS = "Exceeded 30 redirects"
OF_THE_LOGIN = re.compile(
    r"authentication failed|no pg_hba\.conf entry|(?:database|role) \"[^\"]*\" does not exist|"
    r"Access denied for user|Unknown database|Login failed for user|certificate verify failed"
)
"""How databases refuse a client; their drivers raise it as if they were down."""
WORDS = {
    401: "asks who we are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN",
    403: "does not allow this: let it give the pipeline's user the right to, or set the right "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    407: "lies behind a proxy that asks who we are: set HTTPS_PROXY or NO_PROXY",
    413: "does not take what is as large as this: raise the limit there, or in the proxy before it "
    "(nginx: client_max_body_size)",
}
NO_REPLY_OF_MLFLOW = (
    "answers, but not as an MLflow server (a login page?): open its address in a browser, let the "
    "proxy before it pass /api for MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_USERNAME, or mend "
    "--tracking-uri"
)


def in_words(error: BaseException) -> str:
    """Say what a store refuses and what to do; empty where it may be something else.

    Parameters
    ----------
    error
        Of requests, SQLAlchemy or MLflow.
    """
    import ssl

    from requests.exceptions import InvalidSchema, InvalidURL

    for one in chain(error):
        if isinstance(one, InvalidURL | InvalidSchema):
            return f"has an address that cannot be asked ({printable(one, 200)}): mend it"
        if isinstance(one, ssl.SSLCertVerificationError):
            return (
                f"has a certificate that is not accepted ({printable(one.verify_message, 200)}): "
                "renew it, or name the file of its authority: MLFLOW_TRACKING_SERVER_CERT_PATH"
            )
        if isinstance(one, ssl.SSLError) and one.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return "does not speak https: write http:// in --tracking-uri, or mend its port"
    text = str(error)
    if tunnel := TUNNEL.search(text):
        return f"lies behind a proxy that refuses ({tunnel[1]}): set HTTPS_PROXY or NO_PROXY"
    begins = NOT_JSON.search(text)
    # What begins like a reply was cut off.
    if TOO_MANY_REDIRECTS in text or (begins and begins[1] not in "{["):
        return NO_REPLY_OF_MLFLOW
    status = status_of(error)
    if not is_refusal(status) or status == NOT_FOUND:
        return ""
    said = printable(text.partition("Response text:")[0].partition("Response body:")[0], 200)
    return WORDS.get(status or 0) or f"refused with status {status}: {said}"


def is_refusal(status: int | None) -> bool:
    """Say whether an HTTP status comes again, however often one asks."""
    return status is not None and 400 <= status < 500 and status not in UNAVAILABLE


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error is about; None if it is about none, or MLflow's own."""
    for one in chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if status is not None:
            return int(status)
    if told := STATUS.search(str(error)):
        return int(told[1])
    answer = getattr(error, "json", None)
    # A proxy's JSON has no code of MLflow's, which then takes it for a failure of the server.
    is_foreign = isinstance(answer, dict) and not answer.get("error_code")
    return exchanges.last_status() if is_foreign else None


def database_in_words(error: BaseException) -> str:
    """Return how a database refuses a client; empty where it may be down."""
    lines = str(error).splitlines()
    return next((printable(line, 200) for line in lines if OF_THE_LOGIN.search(line)), "")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error and those that it came from, each once."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
