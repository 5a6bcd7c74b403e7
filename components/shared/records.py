"""Reads the JSON file that describes an artifact."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from yolo_distill.components.shared.errors import InputError

Record = TypeVar("Record", bound=BaseModel)


def read_record(
    folder: Path, name: str, kind: type[Record], *, artifact: str, record: str, origin: str, again: str
) -> Record:
    """Read the JSON file that describes an artifact.

    Args:
        folder: The artifact.
        name: The file's name in it.
        kind: What the file holds.
        artifact: What the folder should be, for messages, such as ``a benchmark``.
        record: What the file should be, such as ``benchmark``.
        origin: What to do where there is no such file.
        again: What to do where it is not valid.

    Raises:
        InputError: The folder has no such file, or the file is not valid.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(folder, f"is not {artifact}, it has no {name}", origin)
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise InputError(path, f"is not a valid {record}: {error}", again) from error
