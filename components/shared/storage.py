"""Object storage: S3 or any storage that speaks its protocol."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.s3.connection import connect, explain, is_missing
from yolo_distill.components.shared.s3.download import Digest, download, find_object
from yolo_distill.components.shared.s3.upload import put, upload

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def is_stored(address: str) -> bool:
    """Return whether an address is one of object storage: ``s3://…``."""
    return address.lower().startswith("s3://")


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
            InputError: It names no bucket, or holds credentials.
        """
        bucket, _, key = address.partition("://")[2].partition("/")
        if "@" in bucket:
            # Parameters are recorded by whoever runs the pipeline.
            problem, remedy = "has credentials in it", "Give them to boto3: in the environment, a profile or a role"
            raise InputError(f"s3://…@{bucket.rpartition('@')[2]}", problem, remedy)
        if not re.fullmatch(r"[\w.\-]+", bucket):
            raise InputError(source, "names no bucket", "Write s3://bucket/key or s3://bucket/folder/")
        return cls(source, bucket, key)

    @cached_property
    def client(self) -> "S3Client":
        """The connection."""
        return connect()

    @contextmanager
    def explained(self, name: str = "") -> Iterator[None]:
        """Turn what boto3 raises into what the user can do.

        Args:
            name: Of the one file below this place that the block is about.

        Raises:
            InputError: The block failed for reasons that lie with the storage or its settings.
        """
        try:
            yield
        except InputError:
            raise
        # An endpoint that is no address is a ValueError.
        except (ClientError, BotoCoreError, Boto3Error, ValueError) as error:
            # Without a chain: traces of what lies below may tell secrets.
            source = f"{self.source.rstrip('/')}/{name}" if name else self.source
            raise explain(self._in_full(error), source, self._endpoint) from None

    def _in_full(self, error: Exception) -> Exception:
        """Return the reason of a refusal: to a HEAD the storage gives none, to another question it does."""
        if isinstance(error, ClientError) and error.operation_name == "HeadObject" and not is_missing(error):
            try:
                self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.key, MaxKeys=1)
            except (ClientError, BotoCoreError) as reason:
                return reason
        return error

    @property
    def _endpoint(self) -> str:
        # Without a connection, the error says which server it is about.
        return self.client.meta.endpoint_url if "client" in self.__dict__ else ""


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
            put(self.client, self.bucket, self._key(name), content, {})

    def describe(self, name: str) -> tuple[int, Digest | None] | None:
        """Return a file's size in bytes and what is known of its content, or ``None`` where there is no such file.

        Raises:
            InputError: The storage does not answer or refuses.
        """
        with self.explained():
            try:
                stored = find_object(self.client, self.bucket, self._key(name))
            except ClientError as error:
                if is_missing(error):
                    return None
                raise
        return stored.size, stored.digest

    def upload(self, file: Path, name: str, sha256: str) -> None:
        """Store a file; see :func:`yolo_distill.components.shared.s3.upload.upload`.

        Args:
            file: The file.
            name: Its name in the storage.
            sha256: Its digest, which is stored along with it.

        Raises:
            InputError: The storage does not answer or refuses.
        """
        with self.explained():
            upload(self.client, self.bucket, self._key(name), file, sha256, source=f"{self.source}/{name}")

    def download(self, name: str, file: Path, sha256: str) -> None:
        """Fetch a file; see :func:`yolo_distill.components.shared.s3.download.download`.

        Args:
            name: Its name in the storage.
            file: Where it goes.
            sha256: What its content has to come to.

        Raises:
            InputError: It does not exist or its content is another, the disk is too full, or the storage does not
                answer or refuses.
        """
        with self.explained(name):
            stored = find_object(self.client, self.bucket, self._key(name))
            expected = replace(stored, digest=Digest("sha256", sha256))
            download(self.client, self.bucket, expected, file, source=f"{self.source}/{name}")

    def _key(self, name: str) -> str:
        prefix = self.key.strip("/")
        return f"{prefix}/{name}" if prefix else name
