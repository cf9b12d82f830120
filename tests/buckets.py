"""S3, emulated on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Bucket:
    """A bucket, and what a program needs to use it."""

    name: str
    environment: dict[str, str]
    objects: Any

    @property
    def names(self) -> list[str]:
        """Of all that is in it."""
        return [one.key for one in self.objects.all()]


@contextlib.contextmanager
def bucket(name: str) -> Iterator[Bucket]:
    """Give an empty bucket of a name that no other test has, and its keys in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            place = environment["MLFLOW_S3_ENDPOINT_URL"]
            client = boto3.resource("s3", endpoint_url=place, region_name="us-east-1")
            made = client.create_bucket(Bucket=name)
            yield Bucket(name, environment, made.objects)
    finally:
        server.stop()
