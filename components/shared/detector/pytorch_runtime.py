"""Ultralytics checkpoints, run by PyTorch on the CPU."""

from pathlib import Path
from pickle import UnpicklingError

import yolo_distill.components.shared.ultralytics_env  # noqa: F401  ultralytics reads its settings when imported

import numpy as np
import torch
from ultralytics.nn.tasks import DetectionModel, torch_safe_load

from yolo_distill.components.shared.detector.network import Signature
from yolo_distill.components.shared.errors import InputError


class PyTorchNetwork:
    """A fused ultralytics detection network in evaluation mode."""

    def __init__(self, path: Path, threads: int) -> None:
        # The number of threads belongs to the process, not to the network.
        torch.set_num_threads(threads)
        network = load_network(path)
        self.signature = Signature(
            inputs=[(None, 3, None, None)],
            outputs=[(None, 4 + len(network.names), None)],
            # What it was trained with; an untrained network has no arguments.
            metadata={"names": network.names, "imgsz": dict(getattr(network, "args", {})).get("imgsz")},
        )
        self._network = network.fuse(verbose=False)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network, see :class:`~yolo_distill.components.shared.detector.network.Network`."""
        with torch.inference_mode():
            output = self._network(torch.from_numpy(batch))
        return np.asarray(output[0].numpy())


def load_network(path: Path) -> DetectionModel:
    """Load a checkpoint's detection network without running foreign code.

    A ``.pt`` file is a pickle, which can call anything. It is read by torch's restricted unpickler with a list of
    ultralytics' and torch's own network classes, which is all that an ordinary checkpoint holds; whatever else it names
    is refused before it runs.

    Args:
        path: A ``.pt`` file.

    Returns:
        The network in float32 and evaluation mode, the averaged (EMA) one where there is one.

    Raises:
        InputError: The file is no checkpoint, names classes outside the list, or holds no detection network.
    """
    try:
        checkpoint, _ = torch_safe_load(path, safe_only=True)
    except (TypeError, ModuleNotFoundError, AttributeError, UnpicklingError) as error:
        raise InputError(
            path,
            f"is not an ordinary ultralytics checkpoint: {str(error).strip().splitlines()[0]}",
            "Give a .pt file saved by ultralytics 8 that holds nothing but its own classes",
        ) from error
    network = checkpoint.get("ema") or checkpoint.get("model")
    # Networks for other tasks are derived from this one.
    if type(network) is not DetectionModel:
        raise InputError(path, f"holds a {type(network).__name__}, not a DetectionModel", "Give a detection checkpoint")
    return network.float().eval()
