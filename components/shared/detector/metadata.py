"""What a foreign model file says about itself, in the words of ultralytics' exporters."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass

# Longer texts are no list of classes.
_LONGEST_TEXT = 1_000_000


@dataclass(frozen=True)
class Declared:
    """What is known of a model besides the shapes of its input and output.

    Attributes:
        task: What it is made for, such as ``detect`` or ``segment``.
        classes: Class names by class index.
        imgsz: Height and width in pixels of the input that it was exported for.
    """

    task: str | None = None
    classes: list[str] | None = None
    imgsz: tuple[int, int] | None = None


def read_declared(metadata: Mapping[str, object]) -> Declared:
    """Understand a file's metadata.

    Args:
        metadata: Entries by name. Their values are Python values or, as in ONNX files, texts of those.

    Returns:
        What they say; what is missing or makes no sense is ``None``.
    """
    task = metadata.get("task")
    return Declared(
        task=task if isinstance(task, str) else None,
        classes=_classes(_value(metadata.get("names"))),
        imgsz=_imgsz(_value(metadata.get("imgsz"))),
    )


def _value(entry: object) -> object:
    if not isinstance(entry, str):
        return entry
    try:
        return ast.literal_eval(entry) if len(entry) <= _LONGEST_TEXT else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _classes(names: object) -> list[str] | None:
    if isinstance(names, Mapping):
        if not names or set(names) != set(range(len(names))):
            return None
        names = [names[index] for index in range(len(names))]
    return [str(name) for name in names] if isinstance(names, list | tuple) and names else None


def _imgsz(size: object) -> tuple[int, int] | None:
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        return None
    height, width = sides
    return (height, width) if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0 else None
