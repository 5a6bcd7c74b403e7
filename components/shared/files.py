"""Files and folders that appear whole or not at all."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolo_distill.components.shared.errors import InputError


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Build a folder under a temporary name and move it to ``target`` once it is complete.

    The temporary folder lies beside the target, so that the move is one rename on one file system. If the block raises,
    it is removed and the target is left as it was.

    Args:
        target: Where the folder shall appear. An existing folder there is replaced.

    Yields:
        The temporary folder to write into.

    Raises:
        InputError: The disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    # mkdtemp makes a private folder, but artifacts are read by other steps' users.
    partial.chmod(0o755)
    try:
        yield partial
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        partial.rename(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(target) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part.

    Args:
        target: The file; its folder is made when it is missing.
        text: The content, stored as UTF-8.

    Raises:
        InputError: The disk is full.
    """
    write_bytes(target, text.encode())


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file as :func:`write_text` does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(target) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def require_free_space(folder: Path, needed: int) -> None:
    """Refuse to start work whose result would not fit on the disk.

    Args:
        folder: Where the result goes; it need not exist yet.
        needed: Bytes that the work is going to write.

    Raises:
        InputError: Fewer bytes are free.
    """
    existing = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            folder,
            f"{needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free on its disk",
            "Free some space or choose another output folder",
        )


def _disk_full(target: Path) -> InputError:
    return InputError(target, "no disk space left while writing it", "Free some space or choose another output folder")
