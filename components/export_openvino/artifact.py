"""The artifact of a model that was converted from another."""

from collections.abc import Mapping
from pathlib import Path

from yolo_distill.components.shared.model_card import ModelCard, ModelFormat, Precision, digest_files, write_card


def write_converted_card(
    folder: Path,
    parent: ModelCard,
    *,
    name: str,
    format: ModelFormat,
    file: str,
    lineage: Mapping[str, str],
    precision: Precision = "fp32",
    preprocessing: str | None = None,
) -> ModelCard:
    """Write the card of a converted model whose files lie in place.

    Args:
        folder: The converted model's artifact.
        parent: Card of the model that it was converted from.
        name: How the converted model is called in tables and lineage.
        format: The runtime that opens it.
        file: The file to open, relative to the folder.
        lineage: The conversion's settings, which are added to the parent's lineage and digest.
        precision: Numeric precision of the weights.
        preprocessing: How an image becomes the network's input; as the parent's by default.

    Returns:
        The card.
    """
    card = parent.model_copy(
        update={
            "name": name,
            "format": format,
            "precision": precision,
            "file": file,
            "preprocessing": preprocessing or parent.preprocessing,
            "digests": digest_files(folder),
            "lineage": {**parent.lineage, "parent": parent.digest, **lineage},
        }
    )
    write_card(folder, card)
    return card
