"""Average precision under resampling against pycocotools, and the intervals that come of it."""

import numpy as np
import pytest

from tests.evaluate_map.test_coco import CLASSES, reference, scenes
from yolo_distill.components.evaluate_map.coco import coco_metrics
from yolo_distill.components.evaluate_map.evaluate import evaluate
from yolo_distill.components.evaluate_map.evaluation import read_coco_files
from yolo_distill.components.evaluate_map.matches import average_precision, find_matches
from yolo_distill.components.evaluate_map.paired import Resamples, paired_difference, score_resamples
from yolo_distill.components.shared.errors import InputError


def repeated(truth, detections, counts):
    """The scene in which each image appears so many times, its copies under ids of their own."""
    images, annotations, found = [], [], []
    for image, count in zip(truth["images"], counts, strict=True):
        for _ in range(count):
            new = len(images) + 1
            images.append({**image, "id": new})
            for annotation in (a for a in truth["annotations"] if a["image_id"] == image["id"]):
                annotations.append({**annotation, "id": len(annotations) + 1, "image_id": new})
            found += [{**d, "image_id": new} for d in detections if d["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, found


def counted(truth, detections, counts):
    """AP and AP50 by class for one resample."""
    at = [average_precision(one, np.array([counts]))[0] for one in find_matches(truth, detections)]
    return np.array([one.mean() for one in at]), np.array([one[0] for one in at])


def assert_pycocotools_agrees(scene, counts):
    ap, ap50 = counted(*scene, counts)
    overall, expected, expected50 = reference(*repeated(*scene, counts))
    assert np.where(np.isnan(ap), -1, ap) == pytest.approx(expected, abs=1e-9)
    assert np.where(np.isnan(ap50), -1, ap50) == pytest.approx(expected50, abs=1e-9)
    assert np.nanmean(ap) == pytest.approx(overall[0], abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decimals": 0},
        {"images": 3, "boxes": 60, "false": 500},
        {"labelled": CLASSES[:2]},
        {"shown": CLASSES[:3]},
    ],
    ids=["noisy", "equal scores", "more detections than count", "a class without boxes", "a class never found"],
)
def test_the_images_as_they_are_give_cocos_figures(options):
    scene = scenes(1, **options)
    assert_pycocotools_agrees(scene, [1] * len(scene[0]["images"]))


@pytest.mark.parametrize("seed", range(6))
def test_a_resample_gives_pycocotools_figures_on_repeated_images(seed):
    # So many decimals that no two detections of an image have the same score.
    scene = scenes(seed, decimals=12)
    counts = np.random.default_rng(seed).multinomial(12, [1 / 12] * 12)
    assert max(counts) > 1 and min(counts) == 0
    assert_pycocotools_agrees(scene, counts.tolist())


def test_a_resample_of_few_images_and_many_detections():
    assert_pycocotools_agrees(scenes(3, images=4, boxes=40, false=400, decimals=12), [0, 3, 0, 1])


def test_a_class_that_was_not_drawn_is_unknown():
    truth, detections = scenes(5, decimals=12)
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 2 or a["image_id"] == 1]
    counts = [0, *[1] * 10, 2]
    ap, _ = counted(truth, detections, counts)
    assert np.isnan(ap[1]) and not np.isnan(ap[[0, 2, 3]]).any()
    assert_pycocotools_agrees((truth, detections), counts)


def test_without_detections_nothing_is_found():
    truth, _ = scenes(5)
    assert counted(truth, [], [1] * 12)[0] == pytest.approx(0)


def test_resamples_that_are_counted_in_parts_are_the_same(monkeypatch):
    matches = find_matches(*scenes(2))[0]
    counts = Resamples.draw(12, 1, 30).images
    whole = average_precision(matches, counts)
    monkeypatch.setattr("yolo_distill.components.evaluate_map.matches._CHUNK", 1)
    assert average_precision(matches, counts) == pytest.approx(whole, abs=1e-12, nan_ok=True)


def test_draws_start_with_the_data_as_they_are_and_follow_their_seed():
    draws = Resamples.draw(50, 3, 100, seed=4)
    assert draws.images.shape == (101, 50) and draws.seeds.shape == (101, 3)
    assert (draws.images[0] == 1).all() and draws.seeds[0] == pytest.approx(1 / 3)
    assert (draws.images.sum(axis=1) == 50).all() and draws.seeds.sum(axis=1) == pytest.approx(1)
    assert np.array_equal(Resamples.draw(50, 3, 100, seed=4).images, draws.images)
    assert not np.array_equal(Resamples.draw(50, 3, 100, seed=5).images, draws.images)


def detector(truth, seed, noise):
    """Detections of all labels by a model whose boxes are off by some share of their size, and some false ones."""
    rng = np.random.default_rng(seed)
    detections = []
    for label in truth["annotations"]:
        x, y, w, h = label["bbox"]
        box = (np.array([x, y, w, h]) + rng.normal(0, noise, 4) * [w, h, w, h]).tolist()
        for shown, scores in ((box, (5, 2)), ([y, x, w, h], (2, 5))):
            score = round(float(rng.beta(*scores)), 12)
            detections.append({**{k: label[k] for k in ("image_id", "category_id")}, "bbox": shown, "score": score})
    return detections


@pytest.fixture(scope="module")
def truth():
    return scenes(8, images=40)[0]


@pytest.fixture(scope="module")
def draws():
    return Resamples.draw(40, 3, 1000)


def arm(truth, draws, noise, first_seed):
    return [
        score_resamples(find_matches(truth, detector(truth, seed, noise)), draws)
        for seed in range(first_seed, first_seed + draws.seeds.shape[1])
    ]


def test_a_model_does_not_differ_from_itself(truth, draws):
    models = arm(truth, draws, 0.1, 0)
    difference = paired_difference(models, models, draws, 0.95)
    for interval in (difference.map, difference.map50, *difference.per_class):
        assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)
        assert not interval.excludes_zero


def test_a_large_difference_is_found(truth, draws):
    difference = paired_difference(arm(truth, draws, 0.03, 0), arm(truth, draws, 0.12, 10), draws, 0.95)
    assert 0 < difference.map.low < difference.map.estimate < difference.map.high
    assert difference.map.excludes_zero
    assert all(one.excludes_zero for one in difference.per_class)


def test_chance_alone_is_no_difference(truth, draws):
    intervals = [
        paired_difference(arm(truth, draws, 0.1, 20 * n), arm(truth, draws, 0.1, 20 * n + 10), draws, 0.99).map
        for n in range(2)
    ]
    assert [one.excludes_zero for one in intervals] == [False] * 2
    assert all(one.low < 0 < one.high for one in intervals)


def test_the_estimate_is_the_difference_of_the_mean_map_and_turns_with_the_arms(truth, draws):
    first, second = arm(truth, draws, 0.05, 0), arm(truth, draws, 0.1, 10)
    maps = [
        np.mean([coco_metrics(truth, detector(truth, start + n, noise), CLASSES).map for n in range(3)])
        for start, noise in ((0, 0.05), (10, 0.1))
    ]
    one, other = paired_difference(first, second, draws, 0.95).map, paired_difference(second, first, draws, 0.95).map
    assert one.estimate == pytest.approx(maps[0] - maps[1], abs=1e-9)
    assert (other.estimate, other.low, other.high) == pytest.approx((-one.estimate, -one.high, -one.low))


def test_a_higher_level_is_a_wider_interval(truth, draws):
    arms = arm(truth, draws, 0.05, 0), arm(truth, draws, 0.1, 10)
    narrow, wide = (paired_difference(*arms, draws, level).map for level in (0.9, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_seeds_that_differ_widen_the_interval(truth):
    draws = Resamples.draw(40, 2, 1000)
    plain = arm(truth, draws, 0.1, 0)
    better, worse = arm(truth, draws, 0.02, 10)[0], arm(truth, draws, 0.2, 20)[0]
    mixed = paired_difference([better, worse], plain, draws, 0.95).map
    images_only = Resamples(draws.images, np.full_like(draws.seeds, 0.5))
    fixed = paired_difference([better, worse], plain, images_only, 0.95).map
    assert mixed.high - mixed.low > 2 * (fixed.high - fixed.low)
    assert mixed.estimate == fixed.estimate


def test_an_artifact_holds_what_is_needed(digits, student_dir, tmp_path):
    evaluation = evaluate(digits, student_dir, "val", tmp_path / "evaluation")
    draws = Resamples.draw(evaluation.images, 1, 10)
    scores = score_resamples(find_matches(*read_coco_files(tmp_path / "evaluation")), draws)
    known = [figures.ap for figures in evaluation.per_class.values()]
    assert scores.ap[0] == pytest.approx(np.array(known, dtype=float), abs=1e-9, nan_ok=True)
    assert evaluation.model.lineage["seed"] == "1"
    assert evaluation.model.lineage["recipe"] == "plain"


def test_files_that_are_no_json_are_refused(tmp_path):
    (tmp_path / "ground_truth.json").write_text("{")
    with pytest.raises(InputError, match=r"ground_truth\.json: cannot be read"):
        read_coco_files(tmp_path)
