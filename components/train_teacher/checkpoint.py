"""The PyTorch model artifact: an ordinary ultralytics checkpoint with its model card."""

from collections.abc import Mapping
from pathlib import Path

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

from ultralytics.utils.torch_utils import get_flops, get_num_params, strip_optimizer

from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.files import new_directory
from yolo_distill.components.shared.model_card import ModelCard, digest_files, write_card

CHECKPOINT_NAME = "model.pt"


def write_checkpoint_artifact(
    target: Path, checkpoint: Path, *, name: str, imgsz: int, architecture: str, lineage: Mapping[str, str]
) -> ModelCard:
    """Make a model artifact of an ultralytics checkpoint.

    The checkpoint is stripped of its optimiser state; ``YOLO("model.pt")`` opens it without this package.

    Args:
        target: The artifact's folder, which appears when it is complete.
        checkpoint: A ``.pt`` file.
        name: How the model is called in tables and lineage.
        imgsz: Side of the square input that it was trained for, in pixels.
        architecture: Model YAML or checkpoint that it was built from.
        lineage: What it was made from.

    Returns:
        The artifact's card.

    Raises:
        InputError: The checkpoint holds no detection network.
    """
    network = load_network(checkpoint)
    with new_directory(target) as folder:
        strip_optimizer(checkpoint, folder / CHECKPOINT_NAME)
        card = ModelCard(
            name=name,
            format="pytorch",
            file=CHECKPOINT_NAME,
            digests=digest_files(folder),
            imgsz=imgsz,
            classes=[network.names[index] for index in range(len(network.names))],
            architecture=architecture,
            parameters=get_num_params(network),
            gflops=round(get_flops(network, imgsz), 3),
            lineage=dict(lineage),
        )
        write_card(folder, card)
    return card
