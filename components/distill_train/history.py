"""The history artifact: how a training went.

Layout::

    history.json    one record an epoch, and the model that came of it
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from yolo_distill.components.shared.files import new_directory, write_text
from yolo_distill.components.shared.records import read_record

HISTORY_NAME = "history.json"


class TrainingHistory(BaseModel):
    """How a training went.

    Attributes:
        model: Digest of the model that came of it, as on its card.
        epochs: One record an epoch: ``epoch`` from 1, every loss as ``train/…``, and ``metrics/…`` of the validation,
            0..1, in the epochs that had one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    model: str
    epochs: list[dict[str, float]]


def write_history(target: Path, history: TrainingHistory) -> None:
    """Write the history artifact."""
    with new_directory(target) as folder:
        write_text(folder / HISTORY_NAME, history.model_dump_json(indent=2) + "\n")


def read_history(folder: Path) -> TrainingHistory:
    """Read a history artifact.

    Raises:
        InputError: The folder is no history artifact.
    """
    return read_record(
        folder,
        HISTORY_NAME,
        TrainingHistory,
        artifact="a training history",
        record="training history",
        origin="Give a distill-train output",
        again="Train the model again",
    )
