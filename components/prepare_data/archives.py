"""Unpacks archives that a stranger may have made."""

import errno
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.progress import report_progress

# Images hardly compress. What grows by more than this, and to more than this, was made to fill a disk.
_LARGEST_RATIO = 100
_SMALLEST_BOMB = 10**9
_MOST_FILES = 2_000_000
# The artifact is written to the same disk after unpacking.
_SHARE_OF_FREE_SPACE = 0.5
_COPY_BYTES = 1 << 20
_PROGRESS_FILES = 200


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    regular: bool
    file: IO[bytes] | None


def unpack(archive: Path, source: str, target: Path) -> None:
    """Unpack a zip or tar archive.

    Only ordinary files are written, as new files with default permissions.

    Args:
        archive: The archive; its content decides about the format, not its name.
        source: How the user called it, without credentials.
        target: An existing empty folder.

    Raises:
        InputError: The file is no such archive or a damaged or encrypted one, a member leaves the folder, or is a link
            or a device, or the content is out of proportion to the archive or to the free disk space.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _write(_zip_members(opened, source), archive, source, target)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened_tar:
                _write(_tar_members(opened_tar), archive, source, target)
        else:
            raise InputError(
                source, "is neither a folder nor a zip or tar archive", "Give a folder, .zip, .tar or .tar.gz"
            )
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise InputError(source, f"is a damaged archive: {error}", "Make or download it again") from error
    except OSError as error:
        # gzip's own error is one of these; so are two members of the same name and names that are too long.
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(source, f"cannot be unpacked: {error}", "Make the archive again") from error


def safe_member_path(name: str, source: str) -> PurePosixPath:
    """Return a member's path inside the folder it is unpacked into.

    Args:
        name: The name of an archive member or a storage key.
        source: Where it is from, without credentials.

    Raises:
        InputError: The name leads out of the folder.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or re.search(r"[\\\0]|^.:", name):
        problem = f"the name {name!r} may lead out of the folder"
        raise InputError(source, problem, "Use relative names without .. or backslashes")
    return path


def _zip_members(archive: zipfile.ZipFile, source: str) -> Iterator[_Member]:
    for info in archive.infolist():
        # zipfile mends some names; what the archive says counts.
        if info.flag_bits & 1:
            raise InputError(source, f"the member {info.filename!r} is encrypted", "Give an archive without a password")
        if info.is_dir():
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        regular = kind in {0, stat.S_IFREG}
        yield _Member(info.orig_filename, info.file_size, regular, archive.open(info) if regular else None)


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive:
        if not info.isdir():
            yield _Member(info.name, info.size, info.isreg(), archive.extractfile(info) if info.isreg() else None)


def _write(members: Iterator[_Member], archive: Path, source: str, target: Path) -> None:
    packed = archive.stat().st_size
    free = int(shutil.disk_usage(target).free * _SHARE_OF_FREE_SPACE)
    proportionate = max(_LARGEST_RATIO * packed, _SMALLEST_BOMB)
    total = 0
    for files, member in enumerate(members, 1):
        path = target / safe_member_path(member.name, source)
        if member.file is None:
            raise InputError(source, f"the member {member.name!r} is a link or a device", "Pack the files themselves")
        total += member.size
        if total > proportionate or files > _MOST_FILES:
            raise InputError(source, "unpacks to far more than images take", "Check where the archive comes from")
        if total > free:
            raise InputError(
                source,
                f"unpacks to more than {free / 1e9:.2f} GB, half of what is free on the disk",
                "Free some space, or choose another output folder",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with member.file, path.open("xb") as file:
            shutil.copyfileobj(member.file, file, _COPY_BYTES)
        if files % _PROGRESS_FILES == 0:
            report_progress(files, files, "file", "unpacking")
