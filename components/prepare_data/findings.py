"""What was noticed about the data: nothing is left out or changed without a line in the report."""

from collections import Counter
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from yolo_distill.components.shared.errors import InputError

# As many problems as a person wants to read before starting to mend them.
_SHOWN_PROBLEMS = 10


class Kind(StrEnum):
    """What can be found, in the words of the report."""

    # Problems: somebody made a mistake that ought to be mended.
    UNREADABLE_IMAGE = "image that cannot be decoded"
    OVERSIZED_IMAGE = "image with too many pixels"
    UNREADABLE_LABELS = "label file that cannot be read"
    MALFORMED_BOX = "malformed box"
    UNKNOWN_CLASS = "class out of range"
    OUTSIDE_BOX = "box outside its image"
    WRONG_SIZE = "labels made for another image size"
    # Harmless noise, as real data sets have it.
    EMPTY_BOX = "box without area"
    CLIPPED_BOX = "box reaching over the edge"
    DUPLICATE_BOX = "repeated box"
    CROWD = "crowd region"
    POLYGON = "polygon"
    DUPLICATE_IMAGE = "repeated image"
    TINY_IMAGE = "image too small"
    CONVERTED_IMAGE = "image in another pixel format"
    TURNED_IMAGE = "image stored lying on its side"
    UNLABELLED_TRAIN = "unlabelled training image"
    UNLABELLED_OTHER = "unlabelled validation or test image"
    MISSING_IMAGE = "labels without an image"
    UNLISTED_IMAGE = "image in no split"
    OTHER_FILE = "file that is no image that can be read"


ACTIONS = {
    Kind.UNREADABLE_IMAGE: "image dropped",
    Kind.OVERSIZED_IMAGE: "image dropped",
    Kind.UNREADABLE_LABELS: "labels dropped",
    Kind.MALFORMED_BOX: "box dropped",
    Kind.UNKNOWN_CLASS: "box dropped",
    Kind.OUTSIDE_BOX: "box dropped",
    Kind.WRONG_SIZE: "labels dropped",
    Kind.EMPTY_BOX: "box dropped",
    Kind.CLIPPED_BOX: "cut to the image",
    Kind.DUPLICATE_BOX: "box dropped",
    Kind.CROWD: "box dropped",
    Kind.POLYGON: "replaced by the box around it",
    Kind.DUPLICATE_IMAGE: "image dropped",
    Kind.TINY_IMAGE: "image dropped",
    Kind.CONVERTED_IMAGE: "stored as 8-bit RGB",
    Kind.TURNED_IMAGE: "stored upright",
    Kind.UNLABELLED_TRAIN: "kept without labels",
    Kind.UNLABELLED_OTHER: "image dropped",
    Kind.MISSING_IMAGE: "labels dropped",
    Kind.UNLISTED_IMAGE: "image dropped",
    Kind.OTHER_FILE: "ignored",
}
PROBLEMS = frozenset(
    {
        Kind.UNREADABLE_IMAGE,
        Kind.OVERSIZED_IMAGE,
        Kind.UNREADABLE_LABELS,
        Kind.MALFORMED_BOX,
        Kind.UNKNOWN_CLASS,
        Kind.OUTSIDE_BOX,
        Kind.WRONG_SIZE,
    }
)


class Finding(BaseModel):
    """One thing that was noticed.

    Attributes:
        kind: What it is.
        file: The file it is in, relative to the source.
        place: Where in the file, such as ``line 3``; empty for the whole file.
        detail: More about it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    file: str
    place: str = ""
    detail: str = ""

    @property
    def action(self) -> str:
        """What was done about it."""
        return ACTIONS[self.kind]

    def __str__(self) -> str:
        return " ".join(filter(None, [self.file, self.place])) + ": " + (self.detail or self.kind)


class Findings(list[Finding]):
    """Everything that was noticed so far."""

    def add(self, kind: Kind, file: str, detail: str = "", place: str = "") -> None:
        """Note one thing."""
        self.append(Finding(kind=kind, file=file, place=place, detail=detail))

    def counts(self) -> Counter[Kind]:
        """Return how often each kind was found, the most frequent first."""
        return Counter(dict(Counter(finding.kind for finding in self).most_common()))

    def stop_on_problems(self, source: str) -> None:
        """Refuse data with mistakes in them.

        Args:
            source: What the user gave, without credentials.

        Raises:
            InputError: There are problems; the message lists the first ones.
        """
        problems = [str(finding) for finding in self if finding.kind in PROBLEMS]
        if not problems:
            return
        shown = problems[:_SHOWN_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"… and {len(problems) - len(shown)} more")
        lines = "".join(f"\n  {line}" for line in shown)
        noun = "problem was" if len(problems) == 1 else "problems were"
        raise InputError(
            source,
            f"{len(problems)} {noun} found:{lines}",
            "Mend them, or leave out what is broken with on_error=drop",
        )
