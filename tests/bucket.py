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

            _close_all()  # they know the server of a test before
            fsspec.filesystem("s3", use_listings_cache=False).mkdir(name)
            yield f"s3://{name}"
    finally:
        _close_all()
        server.stop()


def _close_all() -> None:
    """End the sessions of all file systems of this process; left to the garbage, one may warn in any test."""
    import fsspec
    from fsspec.asyn import sync
    from zarr.core.sync import sync as sync_by_zarr

    kind = fsspec.get_filesystem_class("s3")
    for files in list(kind._cache.values()):
        if files._s3 is None:
            continue
        if files.asynchronous:  # made by zarr, at home in its loop
            sync_by_zarr(files._s3.close())
        else:
            sync(files.loop, files._s3.close)
    kind.clear_instance_cache()
