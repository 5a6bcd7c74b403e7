"""NCNN models on the CPU, as a phone would run them."""

from collections.abc import Mapping
from pathlib import Path

import ncnn
import numpy as np
import yaml

from yolo_distill.components.shared.detector.network import Signature
from yolo_distill.components.shared.errors import InputError

# Ultralytics describes an export in this file beside it.
METADATA_NAME = "metadata.yaml"


class NcnnNetwork:
    """A network of one image at a time. Its two files are data, which NCNN's own reader parses."""

    def __init__(self, path: Path, threads: int) -> None:
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise InputError(
                path, f"has no weights beside it, {weights.name} is missing", "Copy .param and .bin together"
            )
        self._network = ncnn.Net()
        self._network.opt.num_threads = threads
        # NCNN returns an error instead of raising one.
        if self._network.load_param(str(path)) or self._network.load_model(str(weights)):
            raise InputError(path, "is not a whole NCNN model", "Export it again, or copy .param and .bin together")
        inputs, outputs = self._network.input_names(), self._network.output_names()
        metadata = _metadata(path)
        side = metadata.get("imgsz")
        height, width = side if isinstance(side, list) and len(side) == 2 else (None, None)
        self.signature = Signature(
            # The file itself has no shapes.
            inputs=[(1, 3, height, width)] * len(inputs),
            outputs=[(1, None, None)] * len(outputs),
            metadata=metadata,
        )
        self._input, self._output = inputs[0], outputs[0]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network, see :class:`~yolo_distill.components.shared.detector.network.Network`."""
        extractor = self._network.create_extractor()
        extractor.input(self._input, ncnn.Mat(batch[0]))
        failed, answer = extractor.extract(self._output)
        if failed:
            raise RuntimeError(f"NCNN stops with error {failed}")
        return np.array(answer, np.float32)[None]


def _metadata(path: Path) -> Mapping[str, object]:
    beside = path.with_name(METADATA_NAME)
    if not beside.is_file():
        return {}
    try:
        content = yaml.safe_load(beside.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(beside, f"is not valid YAML: {error}", "Mend the file, or export the model again") from error
    return content if isinstance(content, dict) else {}
