"""Where the shards of a cache lie: a folder, or a prefix in object storage.

Layout below a cache root, which any number of builders and trainings share::

    <root>/teacher-cache/<key>/open-0003-00000.safetensors                     in a folder
    <root>/teacher-cache/<key>/open-0003-00000-<16 digits of sha256>.safetensors   in object storage
    <root>/teacher-cache/<key>/open-0003-00000.json                            its record: size and digest

A shard counts once its record is there and fits. Folders are guarded by a lock, so that the first of two builders wins;
in object storage, which has none, their shards have different names unless they are the same, so that both are right
whichever record stands.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import require_free_space, sha256_file, write_text
from yolo_distill.components.shared.progress import report_progress
from yolo_distill.components.shared.s3.download import Digest
from yolo_distill.components.shared.storage import StoredFolder, is_stored

CACHE_DIR_VARIABLE = "YOLO_DISTILL_CACHE_DIR"
_BUILD_AGAIN = "Build the cache again"


class ShardRecord(BaseModel):
    """One shard.

    Attributes:
        file: File name.
        sha256: Digest of the file.
        bytes: Its size.
        score_mass: Fraction of the teacher's class scores, summed over all anchor points, that the kept points hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    # Names a file, and comes from wherever the shards lie.
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int
    score_mass: float


class ShardStore(Protocol):
    """A place for shards.

    Attributes:
        address: Where it is.
    """

    address: str

    def find(self, name: str) -> ShardRecord | None:
        """Return the record of a shard that lies there whole, or ``None``."""
        ...

    def add(self, name: str, score_mass: float, write: Callable[[Path], None]) -> ShardRecord:
        """Put a shard there, unless another builder was faster.

        Args:
            name: The shard's file name.
            score_mass: What its record says of the kept points.
            write: Writes the shard into the file that it is given, which does not exist yet.

        Returns:
            The record of what lies there now.
        """
        ...

    def files(self, records: Sequence[ShardRecord]) -> dict[str, Path]:
        """Return files of shards for memory-mapping, by shard name, checked against their digests.

        Raises:
            InputError: A shard is missing or damaged.
        """
        ...

    def require_room(self, needed: int) -> None:
        """Refuse to start building what would not fit.

        Args:
            needed: Bytes of the whole cache, of which some may lie there already.

        Raises:
            InputError: The disk is too full.
        """
        ...


def open_store(address: str, artifact: Path) -> ShardStore:
    """Open a place for shards.

    Args:
        address: A folder, which may be relative to the artifact, or the ``s3://`` address of one.
        artifact: The artifact whose shards they are.

    Raises:
        InputError: The storage does not answer or refuses.
    """
    return StoredShards(address) if is_stored(address) else FolderShards(artifact / address)


def shards_address(cache_root: str | Path, key: str) -> str:
    """Return where the shards of a cache lie.

    Args:
        cache_root: Folder or ``s3://`` address of caches shared by all runs; empty to keep shards in the artifact.
        key: The cache's key.

    Returns:
        An ``s3://`` address, an absolute folder, or a folder relative to the artifact.
    """
    if not cache_root:
        return "shards"
    if is_stored(str(cache_root)):
        return f"{str(cache_root).rstrip('/')}/teacher-cache/{key}"
    return str(Path(cache_root).absolute() / "teacher-cache" / key)


class FolderShards:
    """Shards in a folder.

    Attributes:
        address: The folder.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder, which need not exist yet."""
        self.address = str(folder)
        self._folder = folder

    def find(self, name: str) -> ShardRecord | None:
        """Return the record of a shard that lies there whole, or ``None``."""
        try:
            record = _parsed((self._folder / name).with_suffix(".json").read_bytes())
        except FileNotFoundError:
            return None
        return record if record and self._is_whole(record) else None

    def add(self, name: str, score_mass: float, write: Callable[[Path], None]) -> ShardRecord:
        """Put a shard there, unless another builder was faster; see :meth:`ShardStore.add`."""
        file = self._folder / name
        # One name for all: what a killed builder has left is replaced by whoever goes on.
        partial = file.with_name(f"{name}.partial")
        with self._locked():
            if record := self.find(name):
                return record
            try:
                partial.unlink(missing_ok=True)
                write(partial)
                record = _described(partial, name, score_mass)
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)
            write_text(file.with_suffix(".json"), record.model_dump_json())
        return record

    def files(self, records: Sequence[ShardRecord]) -> dict[str, Path]:
        """Return the shards' files by name; see :meth:`ShardStore.files`."""
        for record in records:
            if Path(record.file).name != record.file or not self._is_whole(record):
                raise InputError(self._folder / record.file, "is missing or differs from its digest", _BUILD_AGAIN)
        return {record.file: self._folder / record.file for record in records}

    def require_room(self, needed: int) -> None:
        """Refuse to start building what would not fit; see :meth:`ShardStore.require_room`."""
        present = sum(file.stat().st_size for file in self._folder.glob("*.safetensors"))
        require_free_space(self._folder, needed - present)

    def _is_whole(self, record: ShardRecord) -> bool:
        file = self._folder / record.file
        return file.is_file() and file.stat().st_size == record.bytes and sha256_file(file) == record.sha256

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        # The system gives the lock back when a builder is killed.
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class StoredShards:
    """Shards in object storage, fetched once into a folder of this machine by who reads them.

    The folder is named by ``YOLO_DISTILL_CACHE_DIR``, by default one below the system's temporary folder; files in it
    are named by their digests.

    Attributes:
        address: The ``s3://`` address.
    """

    def __init__(self, address: str) -> None:
        """Use a place in object storage.

        Args:
            address: Its ``s3://`` address.

        Raises:
            InputError: There is no such bucket, or the storage does not answer or refuses.
        """
        self.address = address
        self._stored = StoredFolder.at(address, address)
        self._stored.require()

    def find(self, name: str) -> ShardRecord | None:
        """Return the record of a shard that lies there whole, or ``None``."""
        content = self._stored.read_bytes(_record_name(name))
        record = _parsed(content) if content else None
        expected = record and (record.bytes, Digest("sha256", record.sha256))
        whole = record and self._stored.describe(_object_name(record)) == expected
        return record if whole else None

    def add(self, name: str, score_mass: float, write: Callable[[Path], None]) -> ShardRecord:
        """Put a shard there; see :meth:`ShardStore.add`."""
        with tempfile.TemporaryDirectory(dir=_local_folder()) as folder:
            file = Path(folder) / name
            write(file)
            record = _described(file, name, score_mass)
            self._stored.upload(file, _object_name(record), record.sha256)
        self._stored.write_bytes(_record_name(name), record.model_dump_json().encode())
        return record

    def files(self, records: Sequence[ShardRecord]) -> dict[str, Path]:
        """Return the shards' files by name, fetched where they are not here yet; see :meth:`ShardStore.files`."""
        folder = _local_folder()
        files = {record.file: folder / f"{record.sha256}.safetensors" for record in records}
        missing = [record for record in records if not _has_digest(files[record.file], record.sha256)]
        require_free_space(folder, sum(record.bytes for record in missing))
        for done, record in enumerate(missing, 1):
            self._stored.download(_object_name(record), files[record.file], record.sha256)
            report_progress(done, len(missing), "shard", "fetched")
        return files

    def require_room(self, needed: int) -> None:
        """Do nothing: object storage has room."""


def _local_folder() -> Path:
    default = Path(tempfile.gettempdir()) / f"yolo-distill-cache-{os.getuid()}"
    folder = Path(os.environ.get(CACHE_DIR_VARIABLE) or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _parsed(content: bytes) -> ShardRecord | None:
    try:
        return ShardRecord.model_validate_json(content)
    except ValidationError:
        return None


def _described(file: Path, name: str, score_mass: float) -> ShardRecord:
    return ShardRecord(file=name, sha256=sha256_file(file), bytes=file.stat().st_size, score_mass=score_mass)


def _has_digest(file: Path, sha256: str) -> bool:
    return file.is_file() and sha256_file(file) == sha256


def _record_name(name: str) -> str:
    return f"{Path(name).stem}.json"


def _object_name(record: ShardRecord) -> str:
    return f"{Path(record.file).stem}-{record.sha256[:16]}.safetensors"
