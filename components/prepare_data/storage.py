"""Reads objects from S3 or any storage that speaks its protocol."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from yolo_distill.components.prepare_data.archives import safe_member_path
from yolo_distill.components.prepare_data.parallel import in_threads
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import require_free_space

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CONNECTIONS = 16
_RETRIES = 3
_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket"}
_CREDENTIALS_REMEDY = "Give boto3 credentials that may read it: by environment variables, a profile or a role"


@dataclass(frozen=True)
class StoredObject:
    """An object in a bucket.

    Attributes:
        key: Its full key.
        size: Bytes.
        etag: The storage's own mark of its content.
    """

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class StoredData:
    """What an address in object storage stands for: one object, or all objects below a prefix.

    Endpoint, region and credentials are found by boto3 (``AWS_ENDPOINT_URL``, ``AWS_PROFILE``, …).

    Attributes:
        source: The address without credentials.
        bucket: Name of the bucket.
        key: Key of an object, or a prefix.
    """

    source: str
    bucket: str
    key: str

    @classmethod
    def at(cls, address: str, source: str) -> "StoredData":
        """Take an address such as ``s3://bucket/archive.zip`` or ``s3://bucket/folder/`` apart.

        Args:
            address: The address.
            source: The same without credentials.

        Raises:
            InputError: It names no bucket.
        """
        bucket, _, key = address.partition("://")[2].partition("/")
        if not re.fullmatch(r"[\w.\-]+", bucket):
            raise InputError(source, "names no bucket", "Write s3://bucket/archive.zip or s3://bucket/folder/")
        return cls(source, bucket, key)

    @property
    def is_archive(self) -> bool:
        """Whether the address is the key of one object."""
        return [stored.key for stored in self.objects] == [self.key]

    @cached_property
    def objects(self) -> list[StoredObject]:
        """The one object of that key, else all objects below the prefix.

        Raises:
            InputError: There is none, or the storage does not answer or refuses.
        """
        with self._explained():
            objects = self._single() or list(self._below())
        if not objects:
            raise InputError(self.source, "holds nothing", "Check bucket and key")
        return objects

    def download(self, target: Path) -> None:
        """Download the objects into a folder, named by their keys below the prefix.

        Args:
            target: An existing folder.

        Raises:
            InputError: A key leads out of the folder, the disk has no room, or the storage does not answer or refuses.
        """
        require_free_space(target, sum(stored.size for stored in self.objects))
        prefix = self.key.rpartition("/")[0] if self.is_archive else self.key.rstrip("/")
        start = len(prefix) + 1 if prefix else 0
        paths = {stored.key: target / safe_member_path(stored.key[start:], self.source) for stored in self.objects}
        files = set(paths.values())
        if clash := next((folder for file in files for folder in file.parents if folder in files), None):
            problem = f"{clash.name!r} is both a key and a folder of keys"
            raise InputError(self.source, problem, "Rename one of them")
        with self._explained():
            in_threads(self._fetch, list(paths.items()), "file", "downloading", _CONNECTIONS)

    @cached_property
    def _client(self) -> "S3Client":
        config = Config(
            connect_timeout=10,
            read_timeout=60,
            retries={"max_attempts": _RETRIES, "mode": "standard"},
            max_pool_connections=_CONNECTIONS,
        )
        # The default session would keep the credentials of an earlier call.
        return boto3.Session().client("s3", config=config)

    def _single(self) -> list[StoredObject]:
        if not self.key or self.key.endswith("/"):
            return []
        try:
            head = self._client.head_object(Bucket=self.bucket, Key=self.key)
        except ClientError as error:
            if error.response["Error"]["Code"] in _NOT_FOUND:
                return []
            raise
        return [StoredObject(self.key, head["ContentLength"], head["ETag"])]

    def _below(self) -> Iterator[StoredObject]:
        prefix = f"{self.key.rstrip('/')}/" if self.key else ""
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                # Consoles mark folders by empty objects.
                if not item["Key"].endswith("/"):
                    yield StoredObject(item["Key"], item["Size"], item["ETag"])

    def _fetch(self, key_and_path: tuple[str, Path]) -> None:
        key, path = key_and_path
        path.parent.mkdir(parents=True, exist_ok=True)
        # One connection an object: there are many small ones.
        self._client.download_file(self.bucket, key, str(path), Config=TransferConfig(use_threads=False))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what boto3 raises into what the user can do."""
        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _NOT_FOUND:
                raise InputError(self.source, "does not exist", "Check bucket and key") from error
            raise InputError(self.source, f"the storage refuses it ({code})", _CREDENTIALS_REMEDY) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise InputError(self.source, "there are no credentials to read it", _CREDENTIALS_REMEDY) from error
        except (ConnectionError, HTTPClientError) as error:
            endpoint = self._client.meta.endpoint_url
            raise InputError(
                self.source, f"the storage at {endpoint} does not answer", "Check the network and AWS_ENDPOINT_URL"
            ) from error
        except InputError:
            raise
        # An endpoint that is no address is a ValueError.
        except (BotoCoreError, Boto3Error, ValueError) as error:
            raise InputError(self.source, f"cannot be read: {error}", "Check the settings of boto3") from error
