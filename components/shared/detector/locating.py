"""Finding the model file in what a user names."""

from dataclasses import dataclass
from pathlib import Path

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import CARD_NAME, ModelCard, ModelFormat, read_card

_FORMATS: dict[str, ModelFormat] = {
    ".pt": "pytorch",
    ".onnx": "onnx",
    ".xml": "openvino",
    ".param": "ncnn",
    ".engine": "tensorrt",
}
_REMEDY = "Give a model artifact's folder, or a .onnx, .xml, .param, .engine or .pt file"


@dataclass(frozen=True)
class ModelFile:
    """A model on disk.

    Attributes:
        path: The file to open.
        format: The runtime that opens it.
        card: The card of a model artifact; ``None`` for a model from elsewhere.
    """

    path: Path
    format: ModelFormat
    card: ModelCard | None


def locate_model(model: Path) -> ModelFile:
    """Find the file to open.

    Args:
        model: A model artifact or a file of one, a model file from elsewhere, or a folder that holds one, as
            ultralytics' export to OpenVINO makes it.

    Raises:
        InputError: There is no such model, or more than one, or the artifact is not sound.
    """
    if model.is_dir():
        return _in_folder(model)
    if not model.is_file():
        raise InputError(model, "there is no such file or folder", _REMEDY)
    if model.suffix.lower() not in _FORMATS:
        raise InputError(model, "is not a model file", _REMEDY)
    if (model.parent / CARD_NAME).is_file():
        found = _in_folder(model.parent)
        if found.path.name == model.name:
            return found
    return ModelFile(model, _FORMATS[model.suffix.lower()], None)


def _in_folder(folder: Path) -> ModelFile:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _FORMATS)
    if (folder / CARD_NAME).is_file() or not files:
        card = read_card(folder)
        return ModelFile(folder / card.file, card.format, card)
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise InputError(folder, f"holds more than one model: {names}", "Name one of the files")
    return ModelFile(files[0], _FORMATS[files[0].suffix.lower()], None)
