"""Object storage: S3 or any storage that speaks its protocol."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from yolo_distill.components.shared.errors import InputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECTIONS = 16
_RETRIES = 3
_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket"}
_CREDENTIALS_REMEDY = "Give boto3 credentials that may use it: by environment variables, a profile or a role"


def is_stored(address: str) -> bool:
    """Return whether an address is one of object storage: ``s3://…``."""
    return address.lower().startswith("s3://")


def is_missing(error: ClientError) -> bool:
    """Return whether a storage's answer says that there is no such object or bucket."""
    return error.response["Error"]["Code"] in _NOT_FOUND


@dataclass(frozen=True)
class StoredPlace:
    """A place in object storage.

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
    def at(cls, address: str, source: str) -> Self:
        """Take an address such as ``s3://bucket/archive.zip`` or ``s3://bucket/folder/`` apart.

        Args:
            address: The address.
            source: The same without credentials.

        Raises:
            InputError: It names no bucket.
        """
        bucket, _, key = address.partition("://")[2].partition("/")
        if not re.fullmatch(r"[\w.\-]+", bucket):
            raise InputError(source, "names no bucket", "Write s3://bucket/key or s3://bucket/folder/")
        return cls(source, bucket, key)

    @cached_property
    def client(self) -> "S3Client":
        """The connection, which repeats what fails for a while and slows down when the storage asks for it."""
        config = Config(
            connect_timeout=10,
            read_timeout=60,
            retries={"max_attempts": _RETRIES, "mode": "adaptive"},
            max_pool_connections=CONNECTIONS,
        )
        # The default session would keep the credentials of an earlier call.
        return boto3.Session().client("s3", config=config)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what boto3 raises into what the user can do.

        Raises:
            InputError: The block failed for reasons that lie with the storage or its settings.
        """
        try:
            yield
        except ClientError as error:
            if is_missing(error):
                raise InputError(self.source, "does not exist", "Check bucket and key") from error
            code = error.response["Error"]["Code"]
            raise InputError(self.source, f"the storage refuses it ({code})", _CREDENTIALS_REMEDY) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise InputError(self.source, "there are no credentials for it", _CREDENTIALS_REMEDY) from error
        except (ConnectionError, HTTPClientError) as error:
            endpoint = self.client.meta.endpoint_url
            raise InputError(
                self.source, f"the storage at {endpoint} does not answer", "Check the network and AWS_ENDPOINT_URL"
            ) from error
        except InputError:
            raise
        # An endpoint that is no address is a ValueError.
        except (BotoCoreError, Boto3Error, ValueError) as error:
            raise InputError(
                self.source, f"cannot be read or written: {error}", "Check the settings of boto3"
            ) from error


class StoredFolder(StoredPlace):
    """A prefix in object storage as a flat folder of files.

    Needs the permissions to list the bucket and to get and put objects.
    """

    def require(self) -> None:
        """Check that the storage answers and lets itself be read, before any long work.

        Raises:
            InputError: There is no such bucket, or the storage does not answer or refuses.
        """
        with self.explained():
            self.client.list_objects_v2(Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1)

    def read_bytes(self, name: str) -> bytes | None:
        """Return a small file's content, or ``None`` where there is no such file.

        Raises:
            InputError: The storage does not answer or refuses.
        """
        with self.explained():
            try:
                return self.client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
            except ClientError as error:
                if is_missing(error):
                    return None
                raise

    def write_bytes(self, name: str, content: bytes) -> None:
        """Store a small file.

        Raises:
            InputError: The storage does not answer or refuses.
        """
        with self.explained():
            self.client.put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    def describe(self, name: str) -> tuple[int, dict[str, str]] | None:
        """Return a file's size in bytes and the remarks it was uploaded with, or ``None`` where there is no such file.

        Raises:
            InputError: The storage does not answer or refuses.
        """
        with self.explained():
            try:
                head = self.client.head_object(Bucket=self.bucket, Key=self._key(name))
            except ClientError as error:
                if is_missing(error):
                    return None
                raise
        return head["ContentLength"], head["Metadata"]

    def upload(self, file: Path, name: str, remarks: dict[str, str]) -> None:
        """Store a file, in several parts at once where it is large; it appears whole or not at all.

        Args:
            file: The file.
            name: Its name in the storage.
            remarks: What is stored along with it.

        Raises:
            InputError: The storage does not answer or refuses.
        """
        with self.explained(), file.open("rb") as content:
            self.client.upload_fileobj(content, self.bucket, self._key(name), ExtraArgs={"Metadata": remarks})

    def download(self, name: str, file: Path) -> None:
        """Fetch a file, in several parts at once where it is large.

        Args:
            name: Its name in the storage.
            file: Where it goes.

        Raises:
            InputError: It does not exist, or the storage does not answer or refuses.
        """
        with StoredPlace(f"{self.source}/{name}", self.bucket, self.key).explained():
            self.client.download_file(self.bucket, self._key(name), str(file))

    def _key(self, name: str) -> str:
        prefix = self.key.strip("/")
        return f"{prefix}/{name}" if prefix else name
