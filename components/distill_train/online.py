"""The teacher at every step, for what a cache cannot serve: views that never come back, and losses that need it all."""

from typing import Any

import torch

from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat, Teacher, dense_answer, sparse_answers


class OnlineTeacher:
    """Answers batches as the cache would have answered them.

    Attributes:
        teacher: The teacher.
        wanted: What of its answers is kept.
    """

    def __init__(self, teacher: Teacher, wanted: AnswerFormat) -> None:
        """Take a teacher to ask.

        Args:
            teacher: The teacher.
            wanted: What of its answers is kept.
        """
        self.teacher = teacher
        self.wanted = wanted

    def read(self, batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        """Return the teacher's answer to each image of a batch.

        Args:
            batch: ``img`` [B, 3, S, S] in 0..1 and its labels.

        Returns:
            What :meth:`TeacherCache.read` returns, one an image.
        """
        answers = self.teacher.answer(batch["img"])
        kept = sparse_answers(answers, self.teacher.select(answers, batch, self.wanted), self.wanted)
        # Inference tensors cannot be saved for the backward pass.
        classes = len(self.teacher.card.classes)
        return [{name: t.clone() for name, t in dense_answer(answer, classes).items()} for answer in kept]
