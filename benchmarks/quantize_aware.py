"""What quantisation-aware distillation gives the INT8 model, beyond quantising the trained student.

The student is that of the accuracy comparison, distilled by a recipe. It is trained on from the same teacher cache in
two ways that differ in the simulated INT8 alone, and batch norms that rest with it. Each of the three is exported and
quantised: as the quantize step does by default; from few calibration images; for ONNX Runtime, which corrects no
biases; and by NNCF without its correction of biases, which shows what the rounding itself costs.

    python benchmarks/quantize_aware.py --data ~/data/BCCD --pretrained yolov8n-coco.pt

What is there already is not made again, and an unfinished training goes on; with the folder of the accuracy comparison
as ``--work``, its teacher, cache and students are used.
"""

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import yolo_distill.components.shared.ultralytics_env

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401

# isort: split
import nncf
import openvino
import typer
from accuracy.run import Data, Experiment, ImageSize, Pretrained, Seeds, Student, Work, measured
from accuracy.run import main as train_students
from converted import exported, quantized
from rich.console import Console
from rich.table import Table

from yolo_distill.components.benchmark.machine import describe_machine
from yolo_distill.components.distill_train.recipe import load_recipe
from yolo_distill.components.distill_train.train import choose_teacher, distill
from yolo_distill.components.evaluate_map.evaluation import read_evaluation
from yolo_distill.components.export_openvino.artifact import write_converted_card
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.quantize.calibration import draw_calibration
from yolo_distill.components.quantize.openvino_int8 import nncf_settings
from yolo_distill.components.quantize_aware_train.train import quantize_aware_train
from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.files import new_directory, write_text
from yolo_distill.components.shared.model_card import read_card
from yolo_distill.components.shared.training import train_settings

SPLITS = ("val", "test")
STUDENT, TRAINED_ON, AWARE = "student", "trained on", "quantisation-aware"
FP32 = "FP32"
INT8 = "INT8"
FEW_IMAGES = 8


def main(
    data: Data,
    pretrained: Pretrained,
    work: Work = Path("runs/accuracy"),
    recipe: Annotated[str, typer.Option(help="How the student is distilled and trained on.")] = "default",
    seeds: Seeds = "0,1,2",
    student: Student = "yolov8p.yaml",
    student_epochs: Annotated[int, typer.Option(help="Length of the student's own training.")] = 50,
    imgsz: ImageSize = 320,
    epochs: Annotated[int, typer.Option(help="How long the student is trained on.")] = 5,
    lr: Annotated[float, typer.Option(help="Learning rate of that.")] = 0.0005,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = (
        Path(__file__).parent / "results/quantize-aware.json"
    ),
) -> None:
    """Measure each student's mAP in FP32 and INT8."""
    experiment = Experiment(work=work, student=student, epochs=student_epochs, imgsz=imgsz)
    train_students(data, pretrained, work, recipe, seeds, student, student_epochs, imgsz)
    folder = work / f"quantize-aware-{recipe}-{epochs}-{lr:g}"
    runs = []
    for seed in map(int, seeds.split(",")):
        models = students(experiment, folder / f"seed-{seed}", recipe, seed, epochs, lr)
        runs.append({"seed": seed, "map": accuracies(experiment, folder / f"seed-{seed}", models)})
        print(json.dumps(runs[-1]), flush=True)
    result = {
        "machine": describe_machine(usable_cores()).model_dump(),
        "settings": {
            "student": Path(student).name,
            "recipe": recipe,
            "student_epochs": student_epochs,
            "epochs": epochs,
            "lr": lr,
            "imgsz": imgsz,
            "images": {split: len(experiment.dataset.split(split)) for split in ("train", *SPLITS)},
        },
        "runs": runs,
        "mean_map": means(runs),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps(result, indent=1) + "\n")
    show(result)


def students(
    experiment: Experiment, folder: Path, recipe_name: str, seed: int, epochs: int, lr: float
) -> dict[str, Path]:
    """Train a student on in both ways; return the model artifacts of one seed by arm."""
    models = {
        STUDENT: experiment.trained(recipe_name, seed) / "last",
        TRAINED_ON: folder / "trained-on" / "last",
        AWARE: folder / "aware" / "last",
    }
    settings = train_settings(epochs=epochs, imgsz=experiment.imgsz, batch=16, seed=seed, lr0=lr)
    recipe = load_recipe(recipe_name)
    shared: dict[str, Any] = {
        "recipe": recipe,
        "teacher": choose_teacher(recipe, experiment.cache, experiment.teacher),
        "work_root": experiment.work,
    }
    dataset, initial = experiment.dataset, models[STUDENT]
    if not models[TRAINED_ON].is_dir():
        distill(dataset, "", settings, models[TRAINED_ON], name="trained-on", initial=initial, **shared)
    if not models[AWARE].is_dir():
        quantize_aware_train(dataset, initial, settings, models[AWARE], name="aware", **shared)
    return models


def accuracies(experiment: Experiment, folder: Path, models: dict[str, Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mAP50-95 (0..1) by split, precision and arm."""
    values: dict[str, dict[str, dict[str, float]]] = {split: {} for split in SPLITS}
    for arm, model in models.items():
        converted = exported(experiment.dataset, model, folder / "converted" / arm)
        for precision, make in PRECISIONS.items():
            made = make(experiment.dataset, converted)
            for split in SPLITS:
                target = folder / "evaluations" / arm / made.name
                measured(experiment, made, target, split)
                values[split].setdefault(precision, {})[arm] = read_evaluation(target / split).map or 0.0
    return values


def _uncorrected(dataset: DetectionDataset, converted: Path) -> Path:
    target = converted / "int8-uncorrected"
    if not target.is_dir():
        card = read_card(converted / "openvino")
        model = openvino.Core().read_model(converted / "openvino" / card.file)
        settings = nncf_settings(model, card, dataset, draw_calibration(dataset, 300, 0))
        without = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)
        rounded = nncf.quantize(model, **settings, advanced_parameters=without)
        with new_directory(target) as folder:
            openvino.save_model(rounded, folder / "model.xml", compress_to_fp16=False)
            write_converted_card(
                folder, card, name=card.name, format="openvino", precision="int8", file="model.xml", lineage={}
            )
    return target


PRECISIONS: dict[str, Callable[[DetectionDataset, Path], Path]] = {
    FP32: lambda _, converted: converted / "openvino",
    INT8: quantized,
    f"INT8, {FEW_IMAGES} calibration images": partial(quantized, name="int8-few", calibration_images=FEW_IMAGES),
    "INT8 for ONNX Runtime": partial(quantized, name="int8-onnx", source="onnx", method="onnx-qdq"),
    "INT8 without bias correction": _uncorrected,
}


def means(runs: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mAP50-95 (0..1) by split, precision and arm, as the mean over seeds."""
    return {
        split: {
            precision: {arm: statistics.fmean(run["map"][split][precision][arm] for run in runs) for arm in arms}
            for precision, arms in precisions.items()
        }
        for split, precisions in runs[0]["map"].items()
    }


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    console = Console()
    for split, precisions in result["mean_map"].items():
        table = Table("", *(STUDENT, TRAINED_ON, AWARE), title=f"{split}: mAP50-95 (points against FP32)")
        for precision, arms in precisions.items():
            cells = (
                f"{100 * arms[arm]:.2f}"
                + (f" ({100 * (arms[arm] - precisions[FP32][arm]):+.2f})" if precision != FP32 else "")
                for arm in arms
            )
            table.add_row(precision, *cells)
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
