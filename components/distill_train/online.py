"""The teacher at every step, for what a cache cannot serve: views that never come back, and losses that need it all."""

from typing import Any

import torch

from yolo_distill.components.teacher_cache_logits.teacher import PointSelection, Teacher, sparse_answers


class OnlineTeacher:
    """Answers batches as the cache would have answered them.

    Attributes:
        teacher: The teacher.
        selection: Which anchor points its answers keep.
    """

    def __init__(self, teacher: Teacher, selection: PointSelection) -> None:
        """Take a teacher to ask.

        Args:
            teacher: The teacher.
            selection: Which anchor points its answers keep.
        """
        self.teacher = teacher
        self.selection = selection

    def read(self, batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        """Return the teacher's answer to each image of a batch.

        Args:
            batch: ``img`` [B, 3, S, S] in 0..1 and its labels.

        Returns:
            What :meth:`TeacherCache.read` returns, one an image.
        """
        answers = self.teacher.answer(batch["img"])
        kept = sparse_answers(answers, self.teacher.select(answers, batch, self.selection))
        # Inference tensors cannot be saved for the backward pass.
        return [{name: tensor.clone() for name, tensor in answer.items()} for answer in kept]
