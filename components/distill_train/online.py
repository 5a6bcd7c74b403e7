"""The teacher at every step, for what a cache cannot serve: views that never come back, and losses that need it all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from yolo_distill.components.distill_train.layers import LayerOutputs
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat, Teacher, dense_answer, sparse_answers


@dataclass(frozen=True)
class OnlineAnswer:
    """What a teacher says about a batch.

    Attributes:
        sparse: What :meth:`TeacherCache.read` returns, one an image.
        maps: Outputs of the teacher's layers by their number, float32 [B, C, H, W].
    """

    sparse: list[dict[str, torch.Tensor]]
    maps: dict[int, torch.Tensor]


class OnlineTeacher:
    """Answers batches as the cache would have answered them, and keeps whole maps where they are wanted.

    Attributes:
        teacher: The teacher.
        folder: Its model artifact.
        wanted: What of its answers is kept.
    """

    def __init__(self, teacher: Teacher, wanted: AnswerFormat) -> None:
        """Take a teacher to ask.

        Args:
            teacher: The teacher.
            wanted: What of its answers is kept.
        """
        self.teacher = teacher
        self.folder = teacher.folder
        self.wanted = wanted
        self._layers: Sequence[int] = ()
        self._outputs = LayerOutputs(teacher.network, ())

    def keep_maps(self, layers: Sequence[int]) -> None:
        """Keep the outputs of these layers from here on, in place of those named before."""
        self._outputs.close()
        self._layers = layers
        self._outputs = LayerOutputs(self.teacher.network, layers)

    def read(self, batch: dict[str, Any]) -> OnlineAnswer:
        """Ask the teacher about a batch.

        Args:
            batch: ``img`` [B, 3, S, S] in 0..1 and its labels.
        """
        answers = self.teacher.answer(batch["img"])
        kept = sparse_answers(answers, self.teacher.select(answers, batch, self.wanted), self.wanted)
        # Inference tensors cannot be saved for the backward pass.
        classes = len(self.teacher.card.classes)
        return OnlineAnswer(
            [{name: t.clone() for name, t in dense_answer(answer, classes).items()} for answer in kept],
            {layer: self._outputs[layer].clone() for layer in self._layers},
        )
