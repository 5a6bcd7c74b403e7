"""Stores files so that neither a broken connection nor a killed process costs what the storage has got already.

s3transfer, which boto3 brings along, starts over after a kill and leaves the parts of the first try behind.
"""

import hashlib
import os
import threading
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.utils import ReadFileChunk

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.s3.connection import error_code, is_missing
from yolo_distill.components.shared.s3.download import Digest, find_object
from yolo_distill.components.shared.s3.parts import (
    PART_BYTES,
    THREADS,
    Meter,
    Part,
    StoppedError,
    in_parallel,
    persistently,
    split,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_CHUNK_BYTES = 1 << 20
# The protocol allows no more.
_MOST_PARTS = 10_000
_LOST = {"NoSuchUpload", "InvalidPart"}


def upload(client: "S3Client", bucket: str, key: str, file: Path, sha256: str, *, source: str) -> None:
    """Store a file, in several parts at once where it is large; it appears whole or not at all.

    Every part travels with its MD5, which the storage checks. Parts that a killed process has left are used again if
    they hold the same bytes. When storing fails for good they are removed: nobody may ever come for them, and the
    storage charges for them.

    Args:
        client: The connection.
        bucket: Name of the bucket.
        key: The object's key.
        file: The file.
        sha256: Its digest, which is stored along with it for whoever fetches it.
        source: The object's address for messages.

    Raises:
        InputError: Others keep storing something else under the same key.
        BotoCoreError: The storage does not answer.
        ClientError: The storage refuses.
    """
    if file.stat().st_size <= PART_BYTES:
        put(client, bucket, key, file.read_bytes(), {"sha256": sha256})
        return
    transfer = _Upload(client, bucket, key, file, sha256)
    # What a killed process has left may be of a file that only begins alike, and others may take parts away.
    for begun in (transfer.unfinished, transfer.begin, transfer.begin):
        if transfer.send(begun()):
            return
    raise InputError(source, "holds something else than was stored", "Check who else writes there, and try again")


def put(client: "S3Client", bucket: str, key: str, content: bytes, metadata: dict[str, str]) -> None:
    """Store a small object.

    Raises:
        BotoCoreError: The storage does not answer.
        ClientError: The storage refuses.
    """
    checksum = b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    persistently(
        lambda: client.put_object(Bucket=bucket, Key=key, Body=content, ContentMD5=checksum, Metadata=metadata),
        threading.Event(),
    )


@dataclass(frozen=True)
class _Begun:
    """An upload in parts that the storage waits for.

    Attributes:
        upload_id: The storage's name for it.
        etags: Marks of the parts that it has got, by number.
    """

    upload_id: str
    etags: dict[int, str]


class _Upload:
    """A large file on its way."""

    def __init__(self, client: "S3Client", bucket: str, key: str, file: Path, sha256: str) -> None:
        self._client, self._bucket, self._key, self._file, self._sha256 = client, bucket, key, file, sha256
        self._size = file.stat().st_size
        self._parts = split(self._size, max(PART_BYTES, -(-self._size // _MOST_PARTS)))

    def begin(self) -> _Begun:
        """Tell the storage that parts are going to come."""
        answer = persistently(
            lambda: self._client.create_multipart_upload(
                Bucket=self._bucket, Key=self._key, Metadata={"sha256": self._sha256}
            ),
            threading.Event(),
        )
        return _Begun(answer["UploadId"], {})

    def unfinished(self) -> _Begun | None:
        """Find what a killed process has left of the same file."""
        # Not every storage lists such uploads, and not everybody may; then there is nothing to go on with.
        with suppress(ClientError):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._key
            ):
                for found in page.get("Uploads", []):
                    if found["Key"] == self._key and (etags := self._matching(found["UploadId"])):
                        return _Begun(found["UploadId"], etags)
        return None

    def send(self, begun: _Begun | None) -> bool:
        """Store the parts that the storage lacks and have it put all together; remove them where that fails.

        Returns:
            Whether the storage holds the file afterwards.
        """
        if not begun:
            return False
        meter = Meter(self._size, "uploading")
        meter.add(sum(part.stop - part.start for part in self._parts if part.number in begun.etags))

        def send_part(part: Part, stopped: threading.Event) -> None:
            begun.etags[part.number] = self._send_part(begun.upload_id, part, stopped)
            meter.add(part.stop - part.start)

        try:
            in_parallel(send_part, [part for part in self._parts if part.number not in begun.etags], THREADS)
            persistently(lambda: self._complete(begun), threading.Event())
        except BaseException as error:
            with suppress(BotoCoreError, ClientError):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._key, UploadId=begun.upload_id)
            # Another process that stores under this key has the parts, or the answer that all went well got lost.
            if not (isinstance(error, ClientError) and error_code(error) in _LOST):
                raise
        return self._is_stored()

    def _complete(self, begun: _Begun) -> None:
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": etag} for number, etag in sorted(begun.etags.items())
        ]
        self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=self._key, UploadId=begun.upload_id, MultipartUpload={"Parts": parts}
        )

    def _send_part(self, upload_id: str, part: Part, stopped: threading.Event) -> str:
        checksum = b64encode(self._part_md5(part)).decode()

        def request() -> str:
            if stopped.is_set():
                raise StoppedError
            with ReadFileChunk.from_filename(str(self._file), part.start, part.stop - part.start) as content:
                return self._client.upload_part(
                    Bucket=self._bucket,
                    Key=self._key,
                    UploadId=upload_id,
                    PartNumber=part.number,
                    Body=cast(IO[bytes], content),
                    ContentMD5=checksum,
                )["ETag"]

        return persistently(request, stopped)

    def _matching(self, upload_id: str) -> dict[int, str]:
        """Return the marks of an upload's parts, or none if any of them is not one of this file's."""
        parts = {part.number: part for part in self._parts}
        etags = {}
        for page in self._client.get_paginator("list_parts").paginate(
            Bucket=self._bucket, Key=self._key, UploadId=upload_id
        ):
            for found in page.get("Parts", []):
                part = parts.get(found["PartNumber"])
                if not part or found["ETag"].strip('"') != self._part_md5(part).hex():
                    return {}
                etags[part.number] = found["ETag"]
        return etags

    def _is_stored(self) -> bool:
        try:
            stored = persistently(lambda: find_object(self._client, self._bucket, self._key), threading.Event())
        except ClientError as error:
            if is_missing(error):
                return False
            raise
        return (stored.size, stored.digest) == (self._size, Digest("sha256", self._sha256))

    def _part_md5(self, part: Part) -> bytes:
        digest = hashlib.md5(usedforsecurity=False)
        with self._file.open("rb") as content:
            for start in range(part.start, part.stop, _CHUNK_BYTES):
                digest.update(os.pread(content.fileno(), min(_CHUNK_BYTES, part.stop - start), start))
        return digest.digest()
