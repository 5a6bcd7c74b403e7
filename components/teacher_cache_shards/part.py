"""Parts of a teacher cache, spelt out: ``2/4`` is the second of four.

Text, because the items of a Kubeflow loop lose their type on the way (integers may arrive as floating point numbers),
and so that each says by itself what it is.
"""

import re

from yolo_distill.components.shared.errors import InputError


def spell_parts(count: int) -> list[str]:
    """Return all parts, such as ``["1/2", "2/2"]``.

    Args:
        count: How many parts, at least 1.
    """
    return [f"{number}/{count}" for number in range(1, count + 1)]


def parse_part(text: str) -> tuple[int, int]:
    """Read a part.

    Args:
        text: Such as ``2/4``.

    Returns:
        Its index, counted from 0, and the number of parts.

    Raises:
        InputError: There is no such part.
    """
    spelt = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    number, count = (int(spelt[1]), int(spelt[2])) if spelt else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"part={text!r}", "is no part", "Write 2/4 for the second of four")
    return number - 1, count
