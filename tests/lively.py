"""A detector without training, for tests that need answers and no good ones."""

from pathlib import Path
from tempfile import TemporaryDirectory

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector import preprocess, read_image
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact


def lively_model(dataset: DetectionDataset, target: Path, imgsz: int = 160, architecture: str = "yolov8n.yaml") -> None:
    """Write a model artifact with random weights.

    Its normalisation layers have seen images, so that their differences reach the output, and its scores are spread
    between 0 and 1.

    Args:
        dataset: Whose classes it has and whose images it has seen.
        target: Where the model artifact appears.
        imgsz: Side of its input in pixels.
        architecture: Its model YAML.
    """
    torch.manual_seed(0)
    network = DetectionModel(architecture, nc=len(dataset.classes), verbose=False)
    network.names = dict(enumerate(dataset.classes))
    network.args = {**DEFAULT_CFG_DICT, "imgsz": imgsz}
    images = [read_image(dataset.image_path(record)) for record in dataset.split("train")[:16]]
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
        network.train()(torch.from_numpy(preprocess(images, imgsz)[0]))
        for norm in norms:
            norm.momentum = 0.03
        for branch in network.model[-1].cv3:
            branch[-1].weight *= 1.5
            branch[-1].bias.fill_(-2)
    model = YOLO("yolov8n.yaml")
    model.model = network.eval()
    with TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.pt")
        write_checkpoint_artifact(
            target,
            Path(folder) / "model.pt",
            name="lively",
            imgsz=imgsz,
            architecture=Path(architecture).name,
            lineage={},
        )
