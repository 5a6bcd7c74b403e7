"""Puts the robustness of several models side by side."""

from collections.abc import Mapping
from pathlib import Path

from yolo_distill.components.evaluate_robustness.report import report
from yolo_distill.components.evaluate_robustness.robustness import Robustness, read_robustness
from yolo_distill.components.evaluate_robustness.summary import summary
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text

# What all must share for their figures to compare.
_SAME = ("dataset", "split", "images", "measured", "settings")


def compare_robustness(folders: Mapping[str, Path], table: Path, page: Path) -> dict[str, Robustness]:
    """Draw the robustness of several models in one picture.

    Args:
        folders: Robustness artifacts by how each model is called.
        table: Where the Markdown file goes.
        page: Where the HTML file goes.

    Returns:
        The figures by the same names.

    Raises:
        InputError: A folder is no robustness artifact, or they were not measured on the same images in the same way.
    """
    models = {name: read_robustness(folder) for name, folder in folders.items()}
    reference, first = next(iter(models.items()))
    for name, model in models.items():
        for what in _SAME:
            own, expected = getattr(model, what), getattr(first, what)
            if own != expected:
                raise InputError(
                    f"robustness of {name}",
                    f"its {what} differ from those of {reference}: {own} against {expected}",
                    "Measure all models on the same images with the same settings",
                )
    content = report(models)
    write_text(table, summary(models).markdown())
    write_text(page, content)
    return models
