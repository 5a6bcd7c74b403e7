from pathlib import Path

import pytest
import torch

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.views import Augmentation, View, ViewDataset
from yolo_distill.components.teacher_cache_logits import stream as streams
from yolo_distill.components.teacher_cache_logits.stream import OpenVinoStream, TorchStream, open_stream
from yolo_distill.components.teacher_cache_logits.teacher import Teacher

PRECISION = "yolo_distill.components.teacher_cache_logits.{}.fast_autocast_dtype"


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("teacher", "stream"):
        monkeypatch.setattr(PRECISION.format(module), lambda _: torch.float32)


@pytest.fixture(scope="module")
def batches(digits: DetectionDataset) -> list[dict]:
    views = ViewDataset(digits, Augmentation(imgsz=96))
    # The last one is smaller, as the last of a shard is.
    return [
        views.collate_fn([views[views.key(View(0, closed=True), index)] for index in indices])
        for indices in (range(4), range(4, 8), range(8, 12), range(12, 15))
    ]


def test_openvino_answers_as_pytorch_does(exact: None, teacher_dir: Path, batches: list[dict]) -> None:
    teacher = Teacher(teacher_dir, "cpu")
    compared = 0
    asked = zip(OpenVinoStream(teacher, 96).answers(batches), TorchStream(teacher).answers(batches), strict=True)
    for (batch, ours), (same, theirs) in asked:
        assert batch is same
        assert len(ours.scores) == len(batch["img"])
        pairs = [
            (ours.scores, theirs.scores),
            (ours.boxes, theirs.boxes),
            *zip(ours.features, theirs.features, strict=True),
        ]
        for a, b in pairs:
            torch.testing.assert_close(a, b.float(), rtol=1e-3, atol=1e-3)
        compared += 1
    assert compared == len(batches)


def test_the_answers_in_hand_outlast_the_questions_in_flight(teacher_dir: Path, batches: list[dict]) -> None:
    stream = OpenVinoStream(Teacher(teacher_dir, "cpu"), 96)
    alone = [answers.scores.clone() for batch in batches for _, answers in stream.answers([batch])]
    together = [answers.scores.clone() for _, answers in stream.answers(batches)]
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_pytorch_keeps_its_threads(teacher_dir: Path, batches: list[dict]) -> None:
    stream = OpenVinoStream(Teacher(teacher_dir, "cpu"), 96)
    before = torch.get_num_threads()
    next(iter(stream.answers(batches)))
    list(stream.answers(batches))
    assert torch.get_num_threads() == before


def test_a_network_that_openvino_does_not_take_runs_in_pytorch(
    teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(network: object, imgsz: int) -> None:
        raise RuntimeError("no conversion for aten::unheard_of")

    monkeypatch.setattr(streams, "_converted", refuse)
    with pytest.warns(UserWarning, match="unheard_of"):
        assert isinstance(open_stream(Teacher(teacher_dir, "cpu"), 96), TorchStream)
