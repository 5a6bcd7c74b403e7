"""TensorRT engines on an NVIDIA GPU."""

from pathlib import Path

import numpy as np
import tensorrt
import torch

from yolo_distill.components.shared.detector.network import Signature
from yolo_distill.components.shared.errors import InputError


class TensorRtNetwork:
    """An engine and one execution context.

    An engine file is compiled code for one kind of GPU and one version of TensorRT, to be trusted like a program: only
    the file that the user names is loaded, and that of a model artifact only if its digest is the card's.
    """

    def __init__(self, path: Path, threads: int) -> None:
        del threads  # the GPU's own matter
        if not torch.cuda.is_available():
            raise InputError(path, "needs an NVIDIA GPU, and there is none", "Give the model in another format")
        self._logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self._engine = tensorrt.Runtime(self._logger).deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise InputError(
                path,
                f"is not an engine for TensorRT {tensorrt.__version__} and {torch.cuda.get_device_name()}",
                "Export the model on this machine",
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        inputs = [name for name in names if modes[name] == tensorrt.TensorIOMode.INPUT]
        outputs = [name for name in names if modes[name] == tensorrt.TensorIOMode.OUTPUT]
        self.signature = Signature(
            inputs=[tuple(self._engine.get_tensor_shape(name)) for name in inputs],
            outputs=[tuple(self._engine.get_tensor_shape(name)) for name in outputs],
            dtype=np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(inputs[0]))).name,
        )
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._tensors = {name: self._allocate(name) for name in names}
        for name, tensor in self._tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._input, self._output = self._tensors[inputs[0]], self._tensors[outputs[0]]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network, see :class:`~yolo_distill.components.shared.detector.network.Network`."""
        with torch.cuda.stream(self._stream):
            self._input.copy_(torch.from_numpy(batch))
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError("TensorRT cannot run the engine")
            answer = self._output.float().cpu()
        self._stream.synchronize()
        return np.asarray(answer.numpy())

    def _allocate(self, name: str) -> torch.Tensor:
        dtype = np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(name)))
        shape = tuple(self._engine.get_tensor_shape(name))
        return torch.from_numpy(np.zeros(shape, dtype)).cuda()
