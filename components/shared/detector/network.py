"""What a runtime offers, and the one detector that is made of any runtime's network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from yolo_distill.components.shared.detector.letterbox import ImageSize

# The length of each axis; ``None`` where the caller chooses.
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """What a model file says about its network.

    Attributes:
        inputs: Shape of every input.
        outputs: Shape of every output; lengths may be unknown until the network has run.
        dtype: Type of the first input's elements, by numpy's name.
        metadata: What else is written in or beside the file, by name.
    """

    inputs: Sequence[Shape]
    outputs: Sequence[Shape]
    dtype: str = "float32"
    metadata: Mapping[str, object] = field(default_factory=dict)


class Network(Protocol):
    """A model file, opened by its runtime.

    Attributes:
        signature: What the file says.
    """

    signature: Signature

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network.

        Args:
            batch: Its first input, C-contiguous float32, of a shape that its signature allows.

        Returns:
            Its first output, float32, which the next run leaves as it is.
        """
        ...


@dataclass(frozen=True)
class NetworkDetector:
    """A network whose input and output are known to be a detector's.

    Attributes:
        classes: Class names by class index.
        imgsz: Size of the network input in pixels.
        network: The network.
        batch: Images that the network takes at a time, ``None`` for any number.
        transposed: Whether it answers [B, N, 4 + classes] instead of [B, 4 + classes, N].
    """

    classes: list[str]
    imgsz: ImageSize
    network: Network
    batch: int | None
    transposed: bool

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run the network, see :class:`~yolo_distill.components.shared.detector.Detector`."""
        answers = self._in_batches(batch)
        return answers.swapaxes(1, 2) if self.transposed else answers

    def _in_batches(self, batch: np.ndarray) -> np.ndarray:
        size = self.batch or len(batch)
        if len(batch) == size:
            return self.network.run(batch)
        # Empty images fill up the last batch.
        filled = np.zeros((-(-len(batch) // size) * size, *batch.shape[1:]), batch.dtype)
        filled[: len(batch)] = batch
        parts = [self.network.run(filled[start : start + size]) for start in range(0, len(filled), size)]
        return np.concatenate(parts)[: len(batch)]
