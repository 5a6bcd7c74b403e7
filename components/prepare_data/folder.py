"""A folder of images and labels, listed once."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from yolo_distill.components.prepare_data.dataset import Split

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Folder:
    """The files below a folder; formats are told apart and read by these names only.

    A label file can therefore name no file outside the folder.

    Attributes:
        root: The folder.
        files: Every file below it, relative with forward slashes, sorted. Hidden files are left out.
    """

    root: Path
    files: tuple[str, ...]

    @classmethod
    def open(cls, root: Path) -> "Folder":
        """List a folder; links to folders are followed, each folder once."""
        files, seen = [], set()
        for directory, names, members in os.walk(root, followlinks=True):
            real = os.path.realpath(directory)
            names[:] = [] if real in seen else [n for n in names if not n.startswith((".", "__MACOSX"))]
            if real in seen:
                continue
            seen.add(real)
            prefix = Path(directory).relative_to(root)
            files += [(prefix / name).as_posix() for name in members if not name.startswith(".")]
        return cls(root, tuple(sorted(files)))

    @cached_property
    def names(self) -> frozenset[str]:
        """The files as a set."""
        return frozenset(self.files)

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The files whose names are those of images."""
        return tuple(file for file in self.files if is_image(file))

    @property
    def folders(self) -> list[str]:
        """Names of the folders directly below."""
        return sorted({file.partition("/")[0] for file in self.files if "/" in file})

    def descend(self, name: str) -> "Folder":
        """Return one of the folders directly below."""
        prefix = f"{name}/"
        return Folder(self.root / name, tuple(f.removeprefix(prefix) for f in self.files if f.startswith(prefix)))

    def path(self, file: str) -> Path:
        """Return where a file lies."""
        return self.root / file

    def below(self, prefix: str, files: Iterable[str]) -> list[str]:
        """Return those files that lie below a folder given relative to the root; ``.`` is the root."""
        return list(files) if prefix == "." else [file for file in files if file.startswith(f"{prefix}/")]


def is_image(file: str) -> bool:
    """Whether a file name is that of an image."""
    return PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES


def split_name(name: str) -> Split | None:
    """Return the split that a name stands for, such as ``train2017`` or ``valid``, or ``None``."""
    return _SPLIT_NAMES.get(re.sub(r"[\d_\-.]+$", "", name.lower()))


def split_of(file: str) -> Split | None:
    """Return the split that one of a file's folders is named after, or ``None``."""
    return next((split for part in PurePosixPath(file).parts[:-1] if (split := split_name(part))), None)
