"""Fetches objects so that neither a broken connection nor a killed process costs what has arrived.

s3transfer, which boto3 brings along, starts over after a kill; that is why the parts are fetched here.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import threading
import zlib
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import require_free_space
from yolo_distill.components.shared.s3.parts import (
    PART_BYTES,
    THREADS,
    Meter,
    Part,
    Patience,
    StoppedError,
    in_parallel,
    split,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

_CHUNK_BYTES = 1 << 20
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Digest:
    """What the bytes of a file have to come to.

    Attributes:
        algorithm: ``sha256``, ``md5`` or ``crc32``.
        value: Hexadecimal digits.
    """

    algorithm: str
    value: str


@dataclass(frozen=True)
class StoredObject:
    """An object in a bucket.

    Attributes:
        key: Its full key.
        size: Bytes.
        etag: The storage's own mark of its content.
        digest: What the storage knows of its content, where it has been asked.
    """

    key: str
    size: int
    etag: str
    digest: Digest | None = None


def find_object(client: "S3Client", bucket: str, key: str) -> StoredObject:
    """Ask for an object's size and digest.

    Raises:
        ClientError: There is none, or the storage refuses.
    """
    head = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    return StoredObject(key, head["ContentLength"], head["ETag"], _told_digest(head, bucket))


def download(
    client: "S3Client",
    bucket: str,
    stored: StoredObject,
    target: Path,
    *,
    source: str,
    threads: int = THREADS,
) -> None:
    """Fetch an object into a file, which appears once it is whole and has proved right.

    Until then its bytes lie in ``<name>.part``, and beside it, once some of several parts have arrived, the list of
    these. Both outlive a killed process and a network that fails for good; the next call goes on from there if the
    object is still the same. Two processes that fetch the same file wait for each other.

    Args:
        client: The connection.
        bucket: Name of the bucket.
        stored: The object. Without a digest, the storage is asked for one; it does not know one of every object.
        target: The file; its folder exists.
        source: The object's address for messages.
        threads: How many parts are fetched at a time.

    Raises:
        InputError: The content differs from its digest, or the disk is too full.
        BotoCoreError: The storage does not answer.
        ClientError: The storage refuses, or the object has changed meanwhile.
    """
    if not stored.digest and stored.size > PART_BYTES:
        stored = replace(stored, digest=find_object(client, bucket, stored.key).digest)
    partial = partial_file(target)
    with _locked(partial) as file:
        # Another process may have fetched it while this one waited.
        if stored.digest and target.is_file() and _digest(target, stored.digest.algorithm) == stored.digest:
            partial.unlink()
            return
        transfer = _Download(client, bucket, stored, source, _Journal(partial, stored), file)
        try:
            transfer.run(threads)
            expected = transfer.digest
            if expected and _digest(partial, expected.algorithm) != expected:
                transfer.journal.path.unlink(missing_ok=True)
                raise InputError(
                    source,
                    f"differs from its digest ({expected.algorithm})",
                    "Try again; if that does not help, it is damaged in the storage",
                )
            transfer.journal.path.unlink(missing_ok=True)
            partial.replace(target)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                require_free_space(target.parent, stored.size)
            raise
        finally:
            if not transfer.journal.path.exists():
                partial.unlink(missing_ok=True)


def partial_file(target: Path) -> Path:
    """Return where a file lies while it is being fetched."""
    return target.with_name(f"{target.name}.part")


class _Journal:
    """Which parts of a file have arrived: a line for the object, and one for each part with its checksum.

    Args:
        partial: The file.
        stored: The object that it is to become.
    """

    def __init__(self, partial: Path, stored: StoredObject) -> None:
        self.path = partial.with_name(f"{partial.name}.json")
        self._title = {"etag": stored.etag, "size": stored.size, "part_bytes": PART_BYTES}
        self._lock = threading.Lock()
        self._checksums = self._read()

    def holds(self, part: Part, file: int) -> bool:
        """Return whether a part has arrived and still lies in the file."""
        return part.number in self._checksums and _crc32(file, part) == self._checksums[part.number]

    def add(self, part: Part, checksum: int) -> None:
        """Note that a part has arrived."""
        with self._lock, self.path.open("a", encoding="utf-8") as lines:
            if not lines.tell():
                lines.write(f"{json.dumps(self._title)}\n")
            lines.write(f"{json.dumps([part.number, checksum])}\n")

    def _read(self) -> dict[int, int]:
        try:
            title, *lines = self.path.read_text(encoding="utf-8").splitlines()
            if json.loads(title) == self._title:
                return {int(number): int(checksum) for number, checksum in map(json.loads, lines)}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):
            pass
        # Of another version of the object, or cut off by a full disk.
        self.path.unlink()
        return {}


class _Download:
    """One object on its way into a file.

    Attributes:
        journal: The parts that have arrived.
        digest: What the content has to come to, if that is known.
    """

    def __init__(
        self, client: "S3Client", bucket: str, stored: StoredObject, source: str, journal: _Journal, file: int
    ) -> None:
        self._client, self._bucket, self._stored, self._source, self._file = client, bucket, stored, source, file
        self._meter = Meter(stored.size, "downloading")
        self.journal, self.digest = journal, stored.digest

    def run(self, threads: int) -> None:
        """Fetch what the file does not hold yet."""
        os.ftruncate(self._file, self._stored.size)
        parts = split(self._stored.size, PART_BYTES)
        missing = [part for part in parts if not self.journal.holds(part, self._file)]
        size = sum(part.stop - part.start for part in missing)
        require_free_space(self.journal.path.parent, size)
        self._meter.add(self._stored.size - size)
        in_parallel(self._fetch, missing, threads)

    def _fetch(self, part: Part, stopped: threading.Event) -> None:
        position, checksum, patience = part.start, 0, Patience(stopped)
        while position < part.stop:
            try:
                for chunk in self._chunks(position, part.stop):
                    if stopped.is_set():
                        raise StoppedError
                    os.pwrite(self._file, chunk, position)
                    position, checksum = position + len(chunk), zlib.crc32(chunk, checksum)
                    self._meter.add(len(chunk))
                    patience.reward()
            except (BotoCoreError, ClientError) as error:
                patience.wait(error)
        if self._stored.size > PART_BYTES:
            self.journal.add(part, checksum)

    def _chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """Read a range of the object, or as much of it as comes before the connection breaks off."""
        key, etag = self._stored.key, self._stored.etag
        if stop - start == self._stored.size:
            answer = self._client.get_object(Bucket=self._bucket, Key=key, IfMatch=etag, ChecksumMode="ENABLED")
            self.digest = self.digest or _told_digest(answer, self._bucket)
        else:
            answer = self._client.get_object(
                Bucket=self._bucket, Key=key, IfMatch=etag, Range=f"bytes={start}-{stop - 1}"
            )
            if not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
                raise InputError(self._source, "the storage does not send parts of it", "Use a storage that does")
        with closing(answer["Body"]) as body:
            while start < stop:
                try:
                    chunk = body.read(min(_CHUNK_BYTES, stop - start))
                # Boto3 lets some of urllib3's through.
                except (HTTPError, OSError) as error:
                    raise ResponseStreamingError(error=error) from error
                if not chunk:
                    raise IncompleteReadError(actual_bytes=0, expected_bytes=stop - start)
                yield chunk
                start += len(chunk)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a file for this process alone; the system gives it free when the process is killed."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had it before may have moved it to where it belongs.
            if _is_at(file, path):
                yield file
                return
        finally:
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _told_digest(answer: "GetObjectOutputTypeDef | HeadObjectOutputTypeDef", bucket: str) -> Digest | None:
    """Return the digest of a whole object that the storage knows.

    That is the one which :func:`upload` has left with it, else the storage's own checksum, else its entity tag where
    that is an MD5: of an object that came in one piece and is not encrypted by a key of its own.
    """
    if _SHA256.fullmatch(noted := answer["Metadata"].get("sha256", "")):
        return Digest("sha256", noted)
    for algorithm, checksum in (("sha256", answer.get("ChecksumSHA256")), ("crc32", answer.get("ChecksumCRC32"))):
        # With a dash it is a checksum of the parts' checksums.
        if checksum and "-" not in checksum and answer.get("ChecksumType") != "COMPOSITE":
            return Digest(algorithm, b64decode(checksum).hex())
    plain = answer.get("ServerSideEncryption", "AES256") == "AES256" and not answer.get("SSECustomerAlgorithm")
    # Directory buckets draw theirs by chance.
    if plain and not bucket.endswith("--x-s3") and (tag := _MD5.fullmatch(answer["ETag"])):
        return Digest("md5", tag.group(1))
    return None


def _digest(file: Path, algorithm: str) -> Digest:
    with file.open("rb") as content:
        if algorithm == "crc32":
            whole = Part(1, 0, file.stat().st_size)
            return Digest(algorithm, f"{_crc32(content.fileno(), whole):08x}")
        digest = hashlib.file_digest(content, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return Digest(algorithm, digest.hexdigest())


def _crc32(file: int, part: Part) -> int:
    checksum = 0
    for start in range(part.start, part.stop, _CHUNK_BYTES):
        checksum = zlib.crc32(os.pread(file, min(_CHUNK_BYTES, part.stop - start), start), checksum)
    return checksum
