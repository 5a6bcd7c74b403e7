"""Asking the teacher about many batches: the next ones are made while it works on the last ones."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401  openvino reports home when imported

# isort: split
import openvino
import torch
from openvino import properties
from torch import nn
from torch.jit._trace import TracerWarning

from yolo_distill.components.shared.precision import fast_autocast_dtype
from yolo_distill.components.teacher_cache_logits.teacher import Teacher, TeacherAnswers

Batch = dict[str, Any]


class TeacherStream(Protocol):
    """Answers batches one after the other."""

    def answers(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, TeacherAnswers]]:
        """Ask the teacher.

        Args:
            batches: Each with ``img``, RGB uint8 [B, 3, S, S].

        Yields:
            Each batch, in order, with the answers to it, which are valid until the next ones are asked for.
        """
        ...


def open_stream(teacher: Teacher, imgsz: int) -> TeacherStream:
    """Return the fastest way of asking a teacher: OpenVINO on a CPU, PyTorch elsewhere.

    Args:
        teacher: The teacher.
        imgsz: Side of the square images in pixels.
    """
    if teacher.device.type != "cpu":
        return TorchStream(teacher)
    try:
        return OpenVinoStream(teacher, imgsz)
    except (RuntimeError, TypeError) as error:
        # A network of the user's own may hold layers that OpenVINO does not know.
        warnings.warn(f"The teacher runs in PyTorch, because OpenVINO does not take it: {error}", stacklevel=2)
        return TorchStream(teacher)


class TorchStream:
    """Asks the teacher in PyTorch."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def answers(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, TeacherAnswers]]:
        """Ask the teacher, see :class:`TeacherStream`."""
        for batch in batches:
            yield batch, self._teacher.answer(batch["img"])


class OpenVinoStream:
    """Asks the teacher in OpenVINO, with as many batches in flight as keep every core busy.

    The network computes in the type that the teacher computes in elsewhere (bfloat16 where the processor has it).
    """

    def __init__(self, teacher: Teacher, imgsz: int) -> None:
        """Convert the teacher, which takes some seconds.

        Args:
            teacher: The teacher, on the CPU.
            imgsz: Side of the square images in pixels.

        Raises:
            RuntimeError: OpenVINO cannot convert the network.
        """
        precise = fast_autocast_dtype(teacher.device) is torch.float32
        settings = {
            properties.hint.performance_mode: properties.hint.PerformanceMode.THROUGHPUT,
            properties.hint.inference_precision: openvino.Type.f32 if precise else openvino.Type.bf16,
        }
        self._compiled = openvino.Core().compile_model(_converted(teacher.network, imgsz), "CPU", settings)
        self._in_flight = self._compiled.get_property(properties.optimal_number_of_infer_requests)

    def answers(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, TeacherAnswers]]:
        """Ask the teacher, see :class:`TeacherStream`."""
        # What PyTorch has to do meanwhile is little; more threads of its own would wait for those of OpenVINO.
        with _threads(1):
            yield from self._answers(batches)

    def _answers(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, TeacherAnswers]]:
        # One request more than are in flight: its outputs are being read.
        idle = deque(self._compiled.create_infer_request() for _ in range(self._in_flight + 1))
        asked: deque[tuple[Batch, openvino.InferRequest]] = deque()
        for batch in batches:
            request = idle.popleft()
            request.start_async({0: (batch["img"].float() / 255).numpy()}, share_inputs=False)
            asked.append((batch, request))
            if len(asked) == self._in_flight:
                yield _answered(*asked[0])
                idle.append(asked.popleft()[1])
        while asked:
            yield _answered(*asked.popleft())


class _RawOutputs(nn.Module):
    """A detection network that returns its raw outputs as a tuple, which a conversion can follow."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raw = self.network(images)[1]
        return raw["scores"], raw["boxes"], *raw["feats"]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _converted(network: nn.Module, imgsz: int) -> openvino.Model:
    with warnings.catch_warnings():
        # PyTorch announces the end of the tracing that OpenVINO's conversion goes by, and that it holds for one size.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", TracerWarning)
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            _RawOutputs(network), torch.zeros(1, 3, imgsz, imgsz), check_trace=False
        )
        model = openvino.convert_model(traced)
    model.reshape([-1, 3, imgsz, imgsz])
    return model


def _answered(batch: Batch, request: openvino.InferRequest) -> tuple[Batch, TeacherAnswers]:
    request.wait()
    scores, boxes, *features = (torch.from_numpy(tensor.data) for tensor in request.output_tensors)
    return batch, TeacherAnswers(scores, boxes, features)
