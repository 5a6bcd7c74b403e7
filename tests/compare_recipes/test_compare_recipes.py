"""Real trials, whose models are too poor to be told apart, and the same with detections that can be."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kfp import dsl

from tests.compare_recipes.conftest import SEEDS
from yolo_distill.components.compare_recipes.compare_recipes import build_comparison, compare_recipes
from yolo_distill.components.compare_recipes.comparison import (
    NO_DIFFERENCE,
    RecipeComparison,
    adjusted_level,
    pairs,
    read_comparison,
)
from yolo_distill.components.compare_recipes.component import compare_recipes as component
from yolo_distill.components.compare_recipes.report import report
from yolo_distill.components.compare_recipes.summary import summary
from yolo_distill.components.compare_recipes.trials import Trial, read_trials
from yolo_distill.components.evaluate_map.coco import coco_metrics
from yolo_distill.components.evaluate_map.evaluation import read_coco_files, read_evaluation, write_evaluation
from yolo_distill.components.shared.errors import InputError

Arms = dict[str, list[Trial]]
# How far the boxes of each recipe's students are off, as a share of their size.
DECIDED = {"plain": 0.12, "default": 0.02, "original": 0.07}


@pytest.fixture(scope="session")
def skilled(
    artifacts: tuple[list[Path], list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, float]], Arms]:
    """Makes the trials' detections as good as wanted: labels whose boxes are off by so much."""

    def make(noise: dict[str, float]) -> Arms:
        folders = []
        for number, source in enumerate(artifacts[0]):
            folder = tmp_path_factory.mktemp("skilled") / "evaluation"
            shutil.copytree(source, folder)
            evaluation, (truth, _) = read_evaluation(folder), read_coco_files(folder)
            rng = np.random.default_rng(number)
            off = noise[evaluation.model.lineage["recipe"]]
            detections = [
                {
                    "image_id": label["image_id"],
                    "category_id": label["category_id"],
                    "bbox": (np.array(label["bbox"]) * (1 + rng.normal(0, off, 4) / [8, 8, 1, 1])).tolist(),
                    "score": round(float(rng.uniform()), 9),
                }
                for label in truth["annotations"]
            ]
            (folder / "detections.json").write_text(json.dumps(detections))
            metrics = coco_metrics(truth, detections, list(evaluation.per_class))
            write_evaluation(folder, evaluation.model_copy(update=dict(metrics)))
            folders.append(folder)
        return read_trials(folders, artifacts[1])

    return make


@pytest.fixture(scope="session")
def decided(skilled: Callable[[dict[str, float]], Arms]) -> Arms:
    return skilled(DECIDED)


@pytest.fixture(scope="session")
def comparison(decided: Arms) -> RecipeComparison:
    return build_comparison(decided)


def test_trials_are_known_by_their_cards_in_whatever_order(artifacts: tuple[list[Path], list[Path]]) -> None:
    arms = read_trials(artifacts[0][::-1], artifacts[1])
    assert list(arms) == ["plain", "default", "original"]
    for name, trials in arms.items():
        assert [trial.seed for trial in trials] == list(SEEDS)
        for trial in trials:
            assert trial.folder.parent.name == f"{name}-{trial.seed}"
            assert trial.history.model == trial.evaluation.model.digest
            assert trial.history.epochs[0]["epoch"] == 1


def test_a_recipe_that_is_ahead_beyond_chance_wins(comparison: RecipeComparison, decided: Arms) -> None:
    assert [recipe.name for recipe in comparison.recipes] == ["default", "original", "plain"]
    assert comparison.winner == "default"
    best = comparison.recipes[0]
    assert best.by_seed == {trial.seed: trial.evaluation.map for trial in decided["default"]}
    assert best.map == pytest.approx(np.mean([trial.evaluation.map for trial in decided["default"]]))
    assert {(one.recipe, one.against) for one in comparison.rivals} == {("default", "original"), ("default", "plain")}
    assert all(0 < one.adjusted.low <= one.map.low < one.map.estimate for one in comparison.rivals)
    [gain] = [one for one in comparison.gains if one.recipe == "default"]
    assert gain.map.estimate == pytest.approx(best.map - comparison.recipes[2].map)
    assert comparison.metrics["default.gain_points"] == pytest.approx(100 * gain.map.estimate, abs=1e-5)
    first, second = summary(comparison).findings
    assert re.fullmatch(r"Winner: default, \+\d.* against original \(\+.*\) and \+.* against plain \(\+.*\)\.", first)
    assert second == "Better than plain training, beyond chance: default, original."


def test_recipes_as_good_as_each_other_are_no_difference(skilled: Callable[[dict[str, float]], Arms]) -> None:
    result = build_comparison(skilled({"plain": 0.12, "default": 0.03, "original": 0.03}))
    assert result.winner == NO_DIFFERENCE
    best, second = (recipe.name for recipe in result.recipes[:2])
    assert {best, second} == {"default", "original"}
    finding = summary(result).findings[0]
    assert finding.startswith(f"No difference: {best} ranks first, but chance may have put it before {second}: ")
    assert "Better than plain training, beyond chance: default, original." in summary(result).markdown()


def test_plain_training_can_win(skilled: Callable[[dict[str, float]], Arms]) -> None:
    result = build_comparison(skilled({"plain": 0.02, "default": 0.12, "original": 0.1}))
    assert result.winner == "plain"
    assert [gain.adjusted.high < 0 for gain in result.gains] == [True, True]
    [finding, better] = summary(result).findings
    assert re.match(r"Winner: plain, \+.* against original \(\+.* to \+.*\)\.", finding)
    assert better.endswith("beyond chance: none.")


def test_intervals_are_adjusted_for_every_pair() -> None:
    assert adjusted_level(2) == pytest.approx(0.95)
    assert adjusted_level(4) == pytest.approx(1 - 0.05 / 6)
    assert pairs(["a", "plain", "b"]) == [("a", "plain"), ("a", "b"), ("b", "plain")]


def test_everything_is_written_by_the_component(
    artifacts: tuple[list[Path], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    kinds = {"table": dsl.Markdown, "report": dsl.HTML, "comparison": dsl.Artifact, "metrics": dsl.Metrics}
    made = {name: kind(name=name, uri=str(tmp_path / name)) for name, kind in kinds.items()}
    evaluations, histories = ([dsl.Artifact(uri=str(path)) for path in paths] for paths in artifacts)
    component.python_func(evaluations=evaluations, histories=histories, winner=str(tmp_path / "winner"), **made)
    result = read_comparison(tmp_path / "comparison")
    assert (tmp_path / "winner").read_text() == result.winner == NO_DIFFERENCE
    assert (tmp_path / "table").read_text() == summary(result).markdown()
    assert (tmp_path / "report").read_text().startswith("<!doctype html>")
    assert made["metrics"].metadata == result.metrics
    assert result.metrics.keys() >= {"plain.map", "default.map", "original.gain_points_low"}


def test_the_reader_is_told_what_the_verdict_rests_on(comparison: RecipeComparison, decided: Arms) -> None:
    told = " ".join(summary(comparison).caveats)
    assert "paired bootstrap, percentiles of 2000 draws of images, the same for all models, and of seeds" in told
    assert "adjusted to hold for all 3 pairs at once (Bonferroni, 98.33 % each)" in told
    assert "2 seeds tell little" in told
    assert f"{comparison.images} images with {comparison.boxes} boxes of the val split" in told
    one_seed = build_comparison({name: trials[:1] for name, trials in decided.items()})
    told = " ".join(summary(one_seed).caveats)
    assert "about other images of this kind alone" in told
    assert "One seed: another one may turn the result" in told


def test_the_page_needs_nothing_else(comparison: RecipeComparison, decided: Arms) -> None:
    page = report(comparison, decided)
    assert not re.search(r"(?:src|href)=\"(?!data:image/)", page)
    assert page.count("data:image/png;base64,") == 3
    assert "Winner: default" in page


def test_names_cannot_break_out_of_the_page(comparison: RecipeComparison, decided: Arms) -> None:
    hostile = comparison.model_dump_json().replace('"default"', '"<script>x|y"')
    renamed = {"<script>x|y" if name == "default" else name: trials for name, trials in decided.items()}
    changed = RecipeComparison.model_validate_json(hostile)
    assert "<script>" not in report(changed, renamed)
    assert r"<script>x\|y" in summary(changed).markdown()


def _changed(folder: Path, target: Path, model: dict[str, object], **changes: object) -> Path:
    shutil.copytree(folder, target)
    evaluation = read_evaluation(folder)
    changed = evaluation.model.model_copy(update=model)
    write_evaluation(target, evaluation.model_copy(update={"model": changed, **changes}))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "0" * 64}, "original with seed 3: its dataset is 0000"),
        ({"split": "test"}, "its split is test"),
        ({"model": {"architecture": "yolov8x.yaml"}}, r"its model's architecture is yolov8x\.yaml"),
        ({"lineage": {"epochs": "7"}}, "its training's epochs is 7"),
        ({"lineage": {"teacher": "1" * 64}}, "learned from 2 different teachers"),
        ({"lineage": {"seed": "4"}}, r"recipe original: has seeds \[0, 4\], plain has \[0, 3\]"),
        ({"lineage": {"seed": "0"}}, r"recipe original: has seeds \[0, 0\], one more than once"),
        ({"model": {"lineage": {}}}, "names no recipe and seed"),
        ({"model": {"digest": "2" * 64}}, "has no training history for its model 222222222222"),
    ],
)
def test_what_does_not_compare_is_refused(
    artifacts: tuple[list[Path], list[Path]], tmp_path: Path, changes: dict[str, dict[str, object]], message: str
) -> None:
    evaluations, histories = artifacts
    model = changes.pop("model", {})
    if "lineage" in changes:
        model = {"lineage": {**read_evaluation(evaluations[-1]).model.lineage, **changes.pop("lineage")}}
    other = _changed(evaluations[-1], tmp_path / "other", model, **changes)
    with pytest.raises(InputError, match=message):
        read_trials([*evaluations[:-1], other], histories)


def test_plain_must_be_among_at_least_two(artifacts: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    evaluations, histories = artifacts
    for some in (evaluations[2:], evaluations[:2]):
        with pytest.raises(InputError, match="Compare plain with at least one recipe"):
            read_trials(some, histories)
    outputs = [tmp_path / name for name in ("table", "page", "comparison")]
    with pytest.raises(InputError):
        compare_recipes(evaluations[2:], histories, *outputs)
    assert list(tmp_path.iterdir()) == []


def test_other_labels_are_refused(artifacts: tuple[list[Path], list[Path]], tmp_path: Path) -> None:
    evaluations, histories = artifacts
    other = _changed(evaluations[-1], tmp_path / "other", {})
    truth = json.loads((other / "ground_truth.json").read_text())
    truth["annotations"][0]["bbox"][0] += 5
    (other / "ground_truth.json").write_text(json.dumps(truth))
    with pytest.raises(InputError, match="has other labels than the first evaluation"):
        build_comparison(read_trials([*evaluations[:-1], other], histories))
