"""The step as a whole: on a random network for what is exact, on a trained one for what falls."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from kfp import dsl
from typer.testing import CliRunner

from tests.lively import lively_model
from yolo_distill.components.evaluate_map.evaluate import evaluate
from yolo_distill.components.evaluate_robustness.component import evaluate_robustness as component
from yolo_distill.components.evaluate_robustness.evaluate import draw_images, evaluate_robustness
from yolo_distill.components.evaluate_robustness.report import report
from yolo_distill.components.evaluate_robustness.robustness import (
    ATTACKS,
    Accuracy,
    AttackResult,
    CorruptionResult,
    Robustness,
    RobustnessSettings,
    parse_settings,
    read_robustness,
)
from yolo_distill.components.evaluate_robustness.summary import summary
from yolo_distill.components.prepare_data.dataset import DetectionDataset, describe_image, write_index
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import read_card, write_card
from yolo_distill.pipelines.cli import app

# On few images one box more or less moves mAP by about so much, up as well as down.
CHANCE = 0.02


@pytest.fixture(scope="module")
def measured(
    answered: DetectionDataset, lively_dir: Path, brief: RobustnessSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Robustness, Path]:
    folder = tmp_path_factory.mktemp("measured") / "robustness"
    return evaluate_robustness(answered, lively_dir, "val", brief, folder), folder


def test_clean_is_what_evaluate_map_says(
    measured: tuple[Robustness, Path], answered: DetectionDataset, lively_dir: Path, tmp_path: Path
) -> None:
    evaluation = evaluate(answered, lively_dir, "val", tmp_path / "evaluation")
    assert evaluation.map50 > 0
    assert (measured[0].clean.map, measured[0].clean.map50) == (evaluation.map, evaluation.map50)
    assert (measured[0].settings, measured[0].model) == (evaluation.settings, evaluation.model)


def test_epsilon_0_is_clean_exactly(measured: tuple[Robustness, Path]) -> None:
    result = measured[0]
    assert [one.attack for one in result.attacks] == list(ATTACKS)
    for one in result.attacks:
        assert list(one.by_epsilon) == [0, 8]
        assert one.by_epsilon[0] == result.clean
        if one.attack != "noise":
            assert one.by_epsilon[8].map < 0.9 * result.clean.map


def test_the_artifact_says_what_was_measured(
    measured: tuple[Robustness, Path], answered: DetectionDataset, lively_dir: Path, brief: RobustnessSettings
) -> None:
    result, folder = measured
    assert read_robustness(folder) == result
    assert (result.measured, result.dataset, result.split) == (brief, answered.digest, "val")
    assert result.images == [record.file for record in answered.split("val")]
    assert result.boxes == sum(record.boxes for record in answered.split("val"))
    assert result.source is not None and result.source.digest == read_card(lively_dir).digest
    assert result.white_box and not result.complete
    assert [one.corruption for one in result.corruptions] == ["contrast", "jpeg_compression"]
    assert all(list(one.by_severity) == [1, 5] for one in result.corruptions)
    page = (folder / "report.html").read_text()
    assert page == report({"lively": result})
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(?:src|href)=\"(?!data:image/)", page)


def test_the_same_again_is_the_same(
    measured: tuple[Robustness, Path], answered: DetectionDataset, lively_dir: Path, tmp_path: Path
) -> None:
    narrower = measured[0].measured.model_copy(update={"corruptions": ("contrast",), "epsilons": (8.0,)})
    again = evaluate_robustness(answered, lively_dir, "val", narrower, tmp_path / "again")
    assert again.corruptions == measured[0].corruptions[:1]
    for one, whole in zip(again.attacks, measured[0].attacks, strict=True):
        assert one.by_epsilon[8] == whole.by_epsilon[8]


def known(result: Robustness) -> Robustness:
    """The figures of a measurement replaced by some to reckon with."""

    def accuracy(value: float) -> Accuracy:
        return Accuracy(map=value, map50=value)

    corruptions = [
        CorruptionResult(corruption="contrast", by_severity={1: accuracy(0.4), 5: accuracy(0.2)}),
        CorruptionResult(corruption="jpeg_compression", by_severity={1: accuracy(0.2), 5: accuracy(0.0)}),
    ]
    attacks = [AttackResult(attack="pgd", by_epsilon={0: accuracy(0.5), 8: accuracy(0.1)})]
    return result.model_copy(update={"clean": accuracy(0.5), "corruptions": corruptions, "attacks": attacks})


def test_what_follows_from_the_figures(measured: tuple[Robustness, Path]) -> None:
    result = known(measured[0])
    assert result.mpc == pytest.approx(0.2)
    assert result.rpc == pytest.approx(0.4)
    assert result.at_severity(1) == pytest.approx(0.3)
    assert result.metrics["corruption.contrast.map"] == pytest.approx(0.3)
    assert result.metrics["pgd.eps8.map"] == pytest.approx(0.1)
    told = summary({"one": result})
    assert told.columns == ("Model", "clean", "mPC", "rPC", "pgd 0/255", "pgd 8/255")
    assert told.rows == [("one", "50.0", "20.0", "40.0", "50.0", "10.0")]
    assert "compares with no published figure" in told.markdown()
    assert "one: a white-box attack" in told.markdown()
    blind = result.model_copy(update={"clean": Accuracy(map=0, map50=0)})
    assert blind.rpc is None and "rpc" not in blind.metrics


def test_names_cannot_break_out_of_the_page(measured: tuple[Robustness, Path]) -> None:
    assert "<script>" not in report({"<script>alert(1)</script>": measured[0]})


def test_a_transfer_attack_is_said_to_be_one(
    digits: DetectionDataset,
    answered: DetectionDataset,
    lively_dir: Path,
    tmp_path: Path,
    measured: tuple[Robustness, Path],
) -> None:
    lively_model(digits, tmp_path / "other", imgsz=128)
    settings = measured[0].measured.model_copy(update={"corruptions": (), "images": 4})
    result = evaluate_robustness(answered, lively_dir, "val", settings, tmp_path / "transfer", tmp_path / "other")
    assert result.source is not None and result.source.digest == read_card(tmp_path / "other").digest
    assert not result.white_box
    assert result.mpc is None
    assert "lively: a transfer attack, by the gradient of lively" in summary({"lively": result}).markdown()
    assert all(one.by_epsilon[0] == result.clean for one in result.attacks)


def test_a_model_without_gradients_needs_a_source(
    digits: DetectionDataset, lively_dir: Path, tmp_path: Path, brief: RobustnessSettings
) -> None:
    shutil.copytree(lively_dir, tmp_path / "model")
    write_card(tmp_path / "model", read_card(lively_dir).model_copy(update={"format": "onnx"}))
    with pytest.raises(InputError, match="through which no gradient flows"):
        evaluate_robustness(digits, tmp_path / "model", "val", brief, tmp_path / "robustness")
    assert not (tmp_path / "robustness").exists()


def test_images_are_drawn_by_seed(digits: DetectionDataset, brief: RobustnessSettings) -> None:
    def drawn(images: int, seed: int = 0) -> list[str]:
        settings = brief.model_copy(update={"images": images, "seed": seed})
        return [record.file for record in draw_images(digits, "val", settings)]

    everything = [record.file for record in digits.split("val")]
    assert drawn(0) == drawn(16) == drawn(99) == everything
    assert drawn(5) == drawn(5) == sorted(drawn(5))
    assert len(set(drawn(5))) == 5 and set(drawn(5)) < set(everything)
    assert drawn(5) != drawn(5, seed=1)


def test_an_image_that_is_too_small_to_corrupt(
    digits: DetectionDataset, tmp_path: Path, brief: RobustnessSettings
) -> None:
    root = tmp_path / "data"
    shutil.copytree(digits.root, root)
    victim = digits.split("val")[3]
    cv2.imwrite(str(root / victim.file), np.zeros((31, 160, 3), np.uint8))
    records = [
        r if r.file != victim.file else describe_image(root, r.file, r.split, 160, 31) for r in digits.manifest.images
    ]
    write_index(root, digits.classes, records, "test")
    dataset = DetectionDataset.open(root)
    with pytest.raises(InputError, match=r"is 160x31 pixels, and corruptions need 32"):
        draw_images(dataset, "val", brief)
    assert len(draw_images(dataset, "val", brief.model_copy(update={"corruptions": ()}))) == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"corruptions": "snow,rain"}, "corruptions snow,rain: there is no rain; known are gaussian_noise"),
        ({"severities": "0,3"}, "severities 0,3: severities are 1 to 5"),
        ({"severities": ""}, "severities are 1 to 5, at least one"),
        ({"severities": "high"}, "severities high: it should be a valid integer"),
        ({"epsilons": "-1"}, "epsilons -1: a pixel changes by 0 to 255"),
        ({"epsilons": "nan"}, "epsilons nan: a pixel changes by 0 to 255"),
        ({"pgd_steps": 0}, "pgd_steps 0: it should be greater than or equal to 1"),
        ({"images": -1}, "images -1: it should be greater than or equal to 0"),
        ({"corruptions": "", "epsilons": " "}, "are both empty. Ask for at least one of them"),
    ],
)
def test_what_cannot_be_measured_is_refused(given: dict[str, object], message: str) -> None:
    usual = {"corruptions": "all", "severities": "1,5", "epsilons": "1", "pgd_steps": 1, "images": 0, "seed": 0}
    with pytest.raises(InputError) as error:
        parse_settings(**{**usual, **given})
    assert message in str(error.value)


def test_settings_are_put_in_order() -> None:
    settings = parse_settings(" frost, snow,frost", "5,1,1", "8,0.5,8", 3, 7, 1)
    assert settings.corruptions == ("snow", "frost")
    assert (settings.severities, settings.epsilons) == ((1, 5), (0.5, 8))
    assert len(parse_settings("all", "1", "", 1, 0, 0).corruptions) == 15


def test_everything_is_written_by_the_component(
    digits: DetectionDataset, lively_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("YOLO_DISTILL_PROGRESS", str(tmp_path / "progress"))
    kinds = {"robustness": dsl.Artifact, "report": dsl.HTML, "metrics": dsl.Metrics}
    made = {name: kind(name=name, uri=str(tmp_path / name)) for name, kind in kinds.items()}
    inputs = {"dataset": dsl.Dataset(uri=str(digits.root)), "model": dsl.Model(uri=str(lively_dir))}
    component.python_func(
        **inputs, **made, images=8, corruptions="contrast", severities="3", epsilons="8", pgd_steps=1, seed=2
    )
    result = read_robustness(tmp_path / "robustness")
    assert made["metrics"].metadata == result.metrics
    assert (len(result.images), result.measured.seed) == (8, 2)
    assert (tmp_path / "report").read_text() == (tmp_path / "robustness" / "report.html").read_text()
    events = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert [event["note"] for event in events] == ["clean", "contrast 3", *(f"{one} 8/255" for one in ATTACKS)]
    assert [event["done"] for event in events] == [8, 16, 24, 32, 40]
    assert {event["total"] for event in events} == {40}


def test_the_command_line(digits: DetectionDataset, lively_dir: Path, tmp_path: Path) -> None:
    common = ["robustness", str(lively_dir), "--data", str(digits.root), "-o", str(tmp_path / "out")]
    brief = ["--images", "4", "--corruptions", "fog", "--severities", "2", "--epsilons", ""]
    done = CliRunner().invoke(app, [*common, *brief])
    assert done.exit_code == 0, done.output
    result = read_robustness(tmp_path / "out")
    assert summary({"lively": result}).markdown().strip() in done.stdout
    assert "report.html" in done.stdout and "image 4/" not in done.stdout
    # What the program made it may replace, and nothing else.
    assert CliRunner().invoke(app, [*common, *brief]).exit_code == 0
    (tmp_path / "mine").mkdir()
    refused = CliRunner().invoke(app, [*common[:-1], str(tmp_path / "mine"), *brief])
    assert refused.exit_code == 2 and "holds something else" in " ".join(refused.stderr.split())
    assert CliRunner().invoke(app, [*common, "--severities", "9"]).exit_code == 2


def test_a_trained_model_falls_with_epsilon_and_with_severity(
    photographs: DetectionDataset, trained: Path, tmp_path: Path
) -> None:
    settings = RobustnessSettings(
        corruptions=("gaussian_noise",), severities=(1, 3, 5), epsilons=(0, 2, 8), pgd_steps=2, images=0
    )
    result = evaluate_robustness(photographs, trained, "val", settings, tmp_path / "robustness")
    assert result.clean.map > 0.2
    attacks = {one.attack: [at.map for at in one.by_epsilon.values()] for one in result.attacks}
    assert all(points[0] == result.clean.map for points in attacks.values())
    for name in ("fgsm", "pgd"):
        _, weak, strong = attacks[name]
        assert weak < result.clean.map - CHANCE
        assert strong < weak + CHANCE
    assert attacks["pgd"][2] < 0.25 * result.clean.map
    # Noise of the same size is no attack.
    assert attacks["noise"][2] > attacks["fgsm"][2] + CHANCE
    severities = [result.at_severity(severity) for severity in settings.severities]
    assert result.clean.map > severities[0] - CHANCE
    assert severities[0] > severities[1] - CHANCE and severities[1] > severities[2] - CHANCE
    assert severities[2] < result.clean.map - CHANCE
