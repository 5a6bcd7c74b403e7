"""Puts what a training reads where all of its nodes see it."""

import fcntl
import hashlib
import shutil
from pathlib import Path

from yolo_distill.components.shared.files import new_directory, sha256_file


def stage(source: Path, root: Path) -> Path:
    """Copy an artifact or a file to a shared volume, unless it lies there.

    Copies are named by content, so that trainings of the same data share one.

    Args:
        source: An artifact, whose records at its top say what it holds, or a file.
        root: A folder of the volume.

    Returns:
        Where it lies on the volume, under its own name.

    Raises:
        InputError: The volume is full.
    """
    folder = root / _content(source)[:16]
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        # Of trainings that start at the same time one copies, and none replaces what another reads.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with new_directory(folder) as partial:
                if source.is_dir():
                    shutil.copytree(source, partial / source.name)
                else:
                    shutil.copyfile(source, partial / source.name)
    return folder / source.name


def _content(source: Path) -> str:
    """Return a digest of what an artifact or file holds."""
    if source.is_file():
        return hashlib.sha256(f"{source.name} {sha256_file(source)}".encode()).hexdigest()
    # Every artifact has a record of its content, with digests, at its top.
    records = [f"{file.name} {sha256_file(file)}" for file in sorted(source.glob("*.json"))]
    return hashlib.sha256("\n".join([source.name, *records]).encode()).hexdigest()
