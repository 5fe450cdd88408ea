"""An S3 server on this machine, for tests of stores that lie elsewhere."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests
from moto.server import ThreadedMotoServer

ADDRESS = "s3://bucket"


@contextmanager
def served() -> Iterator[str]:
    """The address of an empty bucket, while the variables that lead there are set."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        chosen = {"ENDPOINT_URL": endpoint, "ALLOW_HTTP": "true", "ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "REGION": "us-east-1"}
        for name, value in chosen.items():
            patch.setenv(f"AWS_{name}", value)
        requests.put(f"{endpoint}/{ADDRESS.removeprefix('s3://')}", timeout=60).raise_for_status()
        try:
            yield ADDRESS
        finally:
            server.stop()
