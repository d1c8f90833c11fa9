"""An S3 server on this machine, for as long as a with lasts."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest


@contextmanager
def bucket() -> Iterator[str]:
    """The URL of an empty bucket; this process and those it starts know its server by their environment."""
    server_module = pytest.importorskip("moto.server", reason="an S3 server for tests needs the package moto")
    pytest.importorskip("s3fs", reason="s3:// needs the package s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    name = f"infants-{secrets.token_hex(4)}"  # servers of one process have their buckets in common
    try:
        with mock.patch.dict(os.environ, environment):
            import fsspec

            fsspec.get_filesystem_class("s3").clear_instance_cache()  # they know the server of a test before
            fsspec.filesystem("s3", use_listings_cache=False).mkdir(name)
            yield f"s3://{name}"
    finally:
        server.stop()
