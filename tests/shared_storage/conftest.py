import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.shared_storage.faults import Proxy, serve_proxy
from yolo_distill.components.shared.s3 import parts
from yolo_distill.components.shared.storage import StoredFolder


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A storage: ``host:port``."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="session")
def session_proxy(server: str) -> Iterator[Proxy]:
    with serve_proxy(server) as proxy:
        yield proxy


@pytest.fixture
def proxy(session_proxy: Proxy, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A way to a storage with the empty bucket ``data``; boto3 finds it and credentials in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": session_proxy.address,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws-credentials"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parts, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    session_proxy.clear()
    storage = boto3.Session().resource("s3", endpoint_url=f"http://{server}")
    storage.Bucket("data").create()
    yield session_proxy
    session_proxy.clear()
    for upload in storage.Bucket("data").multipart_uploads.all():
        upload.abort()
    storage.Bucket("data").objects.delete()
    storage.Bucket("data").delete()


@pytest.fixture
def folder(proxy: Proxy) -> StoredFolder:
    return StoredFolder.at("s3://data/some/where", "s3://data/some/where")
