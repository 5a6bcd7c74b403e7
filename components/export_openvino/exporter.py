"""Ultralytics' exporter on an artifact's checkpoint, which stays as it is."""

from pathlib import Path

import yolo_distill.components.shared.ultralytics_env  # noqa: F401  ultralytics reads its settings when imported

from ultralytics.engine.exporter import Exporter

from yolo_distill.components.shared.detector.pytorch_runtime import load_network


def run_exporter(checkpoint: Path, folder: Path, **settings: str | int | bool) -> Path:
    """Export a network on the CPU, one image at a time: a fixed batch is what runtimes are fastest with.

    Args:
        checkpoint: A ``.pt`` file.
        folder: Where the exporter may write.
        **settings: Ultralytics' export settings, ``format`` and ``imgsz`` among them.

    Returns:
        What it made, a file or a folder.
    """
    network = load_network(checkpoint)
    # The exporter takes these from the network: where to write, and the training's arguments, which name paths.
    network.pt_path, network.task, network.args = str(folder / "model.pt"), "detect", None
    return Path(Exporter(overrides={**settings, "batch": 1, "device": "cpu"})(network))
