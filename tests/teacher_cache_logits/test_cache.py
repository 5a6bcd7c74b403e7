from pathlib import Path

import pytest
import torch

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import read_card, write_card
from yolo_distill.components.shared.views import Augmentation, View, ViewDataset
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, answer_format, build_cache, cache_settings
from yolo_distill.components.teacher_cache_logits.cache import CacheManifest, TeacherCache
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat, Teacher, dense_answer, sparse_answers

SETTINGS = CacheSettings(Augmentation(imgsz=96), open_views=2, closed_views=1, wanted=AnswerFormat(top_k=20))


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, digits: DetectionDataset, teacher_dir: Path
) -> tuple[TeacherCache, CacheManifest]:
    target = tmp_path_factory.mktemp("cache") / "cache"
    manifest = build_cache(digits, teacher_dir, SETTINGS, target)
    return TeacherCache(target), manifest


def test_answers_are_what_the_teacher_says_of_the_same_view(
    built: tuple[TeacherCache, CacheManifest], digits: DetectionDataset, teacher_dir: Path
) -> None:
    cache = built[0]
    views = ViewDataset(digits, SETTINGS.augmentation)
    teacher = Teacher(teacher_dir)
    for view, index in ((View(0, False), 0), (View(1, False), 17), (View(0, True), 40)):
        online = teacher.answer(views[views.key(view, index)]["img"].unsqueeze(0))
        kept = cache.read(view, index)
        points = kept["points"]
        # bf16 results differ slightly with the batch size; fp16 storage adds less than that.
        torch.testing.assert_close(kept["scores"].float(), online.scores[0, :, points].T.float(), atol=0.1, rtol=0.02)
        torch.testing.assert_close(kept["boxes"].float(), online.boxes[0, :, points].T.float(), atol=0.1, rtol=0.02)
        best = online.scores[0].float().amax(0)
        left_out = torch.ones(len(best), dtype=torch.bool).index_fill(0, points, False)
        assert len(points) >= 20
        assert best[left_out].max() <= best[points].topk(20).values.min() + 0.1
        first = 0
        for level, feature in enumerate(online.features):
            cells = feature[0].flatten(1)
            here = points[(points >= first) & (points < first + cells.shape[1])] - first
            torch.testing.assert_close(kept[f"features.{level}"].float(), cells[:, here].T.float(), atol=0.1, rtol=0.05)
            first += cells.shape[1]


def test_points_that_labels_can_be_assigned_to_are_kept(digits: DetectionDataset, teacher_dir: Path) -> None:
    views = ViewDataset(digits, SETTINGS.augmentation)
    batch = views.collate_fn([views[views.key(View(0, True), index)] for index in range(8)])
    teacher = Teacher(teacher_dir)
    answers = teacher.answer(batch["img"])
    few = teacher.select(answers, batch, AnswerFormat(top_k=1, assigner_top_k=10))
    more = teacher.select(answers, batch, AnswerFormat(top_k=1, assigner_top_k=20))
    boxes = torch.bincount(batch["batch_idx"].long(), minlength=8)
    assert (few.sum(1) > 1).all()
    assert (more.sum(1) <= 1 + 20 * boxes).all()
    empty = {**batch, "batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    assert (teacher.select(answers, empty, AnswerFormat(top_k=1)).sum(1) == 1).all()


def test_the_manifest_describes_the_cache(
    built: tuple[TeacherCache, CacheManifest], digits: DetectionDataset, teacher_dir: Path
) -> None:
    manifest = built[1]
    assert manifest.dataset == digits.digest
    assert manifest.teacher == read_card(teacher_dir).digests["model.pt"]
    assert [shard.file for shard in manifest.shards] == [
        "open-0000-00000.safetensors",
        "open-0001-00000.safetensors",
        "closed-0000-00000.safetensors",
    ]
    assert 0 < manifest.score_mass <= 1
    assert manifest.bytes == sum(file.stat().st_size for file in built[0].files.values())


def test_a_shared_cache_is_found_again_and_mended(tmp_path: Path, digits: DetectionDataset, teacher_dir: Path) -> None:
    work = tmp_path / "work"
    first = build_cache(digits, teacher_dir, SETTINGS, tmp_path / "first", work)
    shards = [Path(first.shards_folder) / shard.file for shard in first.shards]
    times = [shard.stat().st_mtime_ns for shard in shards]
    # One shard is cut short and one is gone, as after a kill and a failing disk.
    shards[0].write_bytes(shards[0].read_bytes()[:1000])
    shards[2].unlink()
    second = build_cache(digits, teacher_dir, SETTINGS, tmp_path / "second", work)
    assert second.shards == first.shards
    assert shards[1].stat().st_mtime_ns == times[1]
    TeacherCache(tmp_path / "second")
    assert not list(work.rglob("*partial*"))


def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, digits: DetectionDataset, teacher_dir: Path) -> None:
    manifest = build_cache(digits, teacher_dir, SETTINGS, tmp_path / "cache")
    shard = tmp_path / "cache" / manifest.shards_folder / manifest.shards[1].file
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=shard.name):
        TeacherCache(tmp_path / "cache")


def test_a_teacher_with_other_classes_is_refused(tmp_path: Path, digits: DetectionDataset, teacher_dir: Path) -> None:
    other = tmp_path / "teacher"
    other.mkdir()
    (other / "model.pt").write_bytes((teacher_dir / "model.pt").read_bytes())
    write_card(other, read_card(teacher_dir).model_copy(update={"classes": ["cat", "dog"]}))
    with pytest.raises(InputError, match="cat, dog"):
        build_cache(digits, other, SETTINGS, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("values", [{"top_k": 0}, {"classes": 0}, {"features": "fp8"}])
def test_an_unknown_format_is_refused_by_name(values: dict) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        answer_format(**values)


def test_a_cache_without_views_is_refused() -> None:
    with pytest.raises(InputError, match="no view is asked for"):
        cache_settings(augmentation=Augmentation(imgsz=96), open_views=0, closed_views=0, wanted=AnswerFormat())


def test_smaller_formats_keep_what_matters(digits: DetectionDataset, teacher_dir: Path) -> None:
    views = ViewDataset(digits, SETTINGS.augmentation)
    batch = views.collate_fn([views[views.key(View(0, True), index)] for index in range(4)])
    teacher = Teacher(teacher_dir)
    answers = teacher.answer(batch["img"])
    mask = teacher.select(answers, batch, AnswerFormat(top_k=20))
    full, small, none = (
        [dense_answer(kept, 10) for kept in sparse_answers(answers, mask, wanted)]
        for wanted in (AnswerFormat(), AnswerFormat(classes=3, features="int8"), AnswerFormat(features="none"))
    )
    for whole, packed, bare in zip(full, small, none, strict=True):
        known = ~packed["scores"].isnan()
        assert (known.sum(1) == 3).all()
        assert whole["scores"][known].equal(packed["scores"][known])
        # What is left out is never higher than what is kept.
        assert (whole["scores"].masked_fill(known, -99).amax(1) <= packed["scores"].nan_to_num(99).amin(1)).all()
        for level in range(3):
            features = whole[f"features.{level}"].float()
            error = (packed[f"features.{level}"].float() - features).abs()
            assert (error <= features.abs().amax(1, keepdim=True) / 127 + 1e-3).all()
            assert f"features.{level}" not in bare
            assert whole[f"attention.{level}"].min() >= 0


def test_a_training_reads_only_what_it_looks_at(built: tuple[TeacherCache, CacheManifest]) -> None:
    whole, view = built[0], View(0, closed=False)
    everything, scores = whole.read(view, 0), whole.without("features", "attention", "channels").read(view, 0)
    assert scores.keys() == {"points", "scores", "boxes"}
    assert all(torch.equal(everything[name].nan_to_num(), scores[name].nan_to_num()) for name in scores)
    assert whole.read(view, 0).keys() == everything.keys() > scores.keys()
