from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from yolo_distill.components.distill_train.train import DistillationTrainer


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def killed_in_the_second_epoch(monkeypatch: pytest.MonkeyPatch):
    """A block in which distillation ends at the end of its second epoch, before the checkpoint is written."""

    def kill(trainer: DistillationTrainer) -> None:
        if trainer.epoch == 1:
            raise Killed

    @contextmanager
    def block() -> Iterator[None]:
        original = DistillationTrainer._install_criterion
        with monkeypatch.context() as patch:
            patch.setattr(
                DistillationTrainer,
                "_install_criterion",
                lambda trainer: (original(trainer), trainer.add_callback("on_train_epoch_end", kill)),
            )
            with pytest.raises(Killed):
                yield

    return block
