"""Reads objects from S3 or any storage that speaks its protocol."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from botocore.exceptions import ClientError

from yolo_distill.components.prepare_data.archives import safe_member_path
from yolo_distill.components.prepare_data.parallel import in_threads
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import require_free_space
from yolo_distill.components.shared.s3.connection import CONNECTIONS, is_missing
from yolo_distill.components.shared.s3.download import StoredObject, download, find_object, partial_file
from yolo_distill.components.shared.s3.parts import THREADS
from yolo_distill.components.shared.storage import StoredPlace


class StoredData(StoredPlace):
    """What an address in object storage stands for: one object, or all objects below a prefix."""

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
        with self.explained():
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
        paths = {stored: target / safe_member_path(stored.key[start:], self.source) for stored in self.objects}
        files = set(paths.values())
        if clash := next((folder for file in files for folder in file.parents if folder in files), None):
            problem = f"{clash.name!r} is both a key and a folder of keys"
            raise InputError(self.source, problem, "Rename one of them")
        if clash := next((file for file in files if partial_file(file) in files), None):
            problem = f"there is a {partial_file(clash).name!r} beside {clash.name!r}, a name for unfinished downloads"
            raise InputError(self.source, problem, "Rename or remove it")
        with self.explained():
            in_threads(self._fetch, list(paths.items()), "file", "downloading", CONNECTIONS)

    def _single(self) -> list[StoredObject]:
        if not self.key or self.key.endswith("/"):
            return []
        try:
            return [find_object(self.client, self.bucket, self.key)]
        except ClientError as error:
            if is_missing(error):
                return []
            raise

    def _below(self) -> Iterator[StoredObject]:
        prefix = f"{self.key.rstrip('/')}/" if self.key else ""
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                # Consoles mark folders by empty objects.
                if not item["Key"].endswith("/"):
                    yield StoredObject(item["Key"], item["Size"], item["ETag"])

    def _fetch(self, stored_and_path: tuple[StoredObject, Path]) -> None:
        stored, path = stored_and_path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Many objects come several at a time already.
        threads = THREADS if len(self.objects) == 1 else 1
        download(self.client, self.bucket, stored, path, source=self.source, threads=threads)
