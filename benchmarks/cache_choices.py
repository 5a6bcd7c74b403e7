"""What of a teacher's answer is worth keeping: bytes a view against the error of the losses and the student's accuracy.

The error is that of the default recipe's gradient for the student, against the gradient from an answer of which every
anchor point was kept in full. Accuracy is that of short trainings, all else being equal.

    python benchmarks/cache_choices.py --data ~/data/BCCD --teacher runs/accuracy/teacher
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
import typer
from rich.console import Console
from rich.table import Table
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.benchmark.machine import describe_machine
from yolo_distill.components.distill_train.adapters import build_adapters
from yolo_distill.components.distill_train.criterion import Distillation, DistillationLoss
from yolo_distill.components.distill_train.layers import neck_pairs
from yolo_distill.components.distill_train.recipe import Recipe, load_recipe
from yolo_distill.components.distill_train.train import STUDENTS_FOLDER, distill
from yolo_distill.components.evaluate_map.evaluate import evaluate
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.training import train_settings
from yolo_distill.components.shared.views import Augmentation, View, ViewDataset
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
from yolo_distill.components.teacher_cache_logits.cache import TeacherCache
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat, Teacher, dense_answer, sparse_answers

IMGSZ, STUDENT = 320, "yolov8p.yaml"
OPEN_VIEWS, CLOSED_VIEWS = 6, 3
CHOICES = (
    AnswerFormat(top_k=32),
    AnswerFormat(top_k=64),
    AnswerFormat(top_k=256),
    AnswerFormat(top_k=512),
    AnswerFormat(top_k=256, features="int8"),
    AnswerFormat(top_k=256, features="none"),
)


def main(
    data: Annotated[str, typer.Option(help="A data set, such as BCCD's folder.")],
    teacher: Annotated[Path, typer.Option(help="Model artifact of a teacher trained on it.")],
    epochs: Annotated[int, typer.Option(help="Length of each training.")] = 12,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1",
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = (
        Path(__file__).parent / "results/cache-choices.json"
    ),
) -> None:
    """Measure every choice and write the table."""
    work = Path(tempfile.mkdtemp(prefix="bench-choices-"))
    prepare(data, work / "dataset")
    dataset = DetectionDataset.open(work / "dataset")
    rows = []
    for number, wanted in enumerate(CHOICES):
        settings = CacheSettings(Augmentation(imgsz=IMGSZ), OPEN_VIEWS, CLOSED_VIEWS, wanted)
        folder = work / f"cache-{number}"
        manifest = build_cache(dataset, teacher, settings, folder)
        recipe = recipe_for(wanted)
        accuracies = [
            student_accuracy(
                dataset, teacher, TeacherCache(folder), recipe, epochs, seed, work / f"student-{number}-{seed}"
            )
            for seed in map(int, seeds.split(","))
        ]
        rows.append(
            {
                **wanted.model_dump(),
                "bytes_per_view": manifest.bytes / (manifest.images * (OPEN_VIEWS + CLOSED_VIEWS)),
                "score_mass": manifest.score_mass,
                "gradient_error": gradient_error(dataset, teacher, TeacherCache(folder), recipe),
                "map": accuracies,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "machine": describe_machine(usable_cores()).model_dump(),
        "settings": {"imgsz": IMGSZ, "student": STUDENT, "epochs": epochs, "seeds": seeds},
        "choices": rows,
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    show(rows)


def recipe_for(wanted: AnswerFormat) -> Recipe:
    """Return the default recipe, without the losses on features where none are kept."""
    recipe = load_recipe("default")
    if wanted.features != "none":
        return recipe
    return recipe.model_copy(update={"terms": [t for t in recipe.terms if t.loss not in {"pkd", "score_weighted_l2"}]})


def gradient_error(dataset: DetectionDataset, teacher_folder: Path, cache: TeacherCache, recipe: Recipe) -> float:
    """Return how far the recipe's gradient from cached answers is from that of complete ones, as a part of its norm."""
    views = ViewDataset(dataset, Augmentation(imgsz=IMGSZ), cache)
    batch = views.collate_fn([views[views.key(View(0, closed=False), index)] for index in range(16)])
    teacher = Teacher(teacher_folder)
    answers = teacher.answer(batch["img"])
    everything = torch.ones(answers.scores.shape[0], answers.scores.shape[2], dtype=torch.bool)
    complete = [
        {name: tensor.clone() for name, tensor in dense_answer(kept, len(dataset.classes)).items()}
        for kept in sparse_answers(answers, everything, AnswerFormat())
    ]
    torch.manual_seed(0)
    student = DetectionModel(str(STUDENTS_FOLDER / STUDENT), nc=len(dataset.classes), verbose=False)
    student.args = get_cfg()
    pairs = neck_pairs(student, teacher.channels)
    student.adapters = build_adapters(recipe, pairs)
    loss = DistillationLoss(student, Distillation(recipe, pairs, student.adapters))
    gradients = []
    for answer in (complete, batch["answer"]):
        student.zero_grad()
        outputs = student.eval()(batch["img"].float() / 255)[1]
        torch.stack(list(loss.distillation_terms(outputs, {**batch, "answer": answer}).values())).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.model.parameters() if p.grad is not None]))
    return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())


def student_accuracy(
    dataset: DetectionDataset,
    teacher: Path,
    cache: TeacherCache,
    recipe: Recipe,
    epochs: int,
    seed: int,
    folder: Path,
) -> float:
    """Train a student from a cache and return its mAP50-95 on val."""
    settings = train_settings(epochs=epochs, imgsz=IMGSZ, batch=16, seed=seed)
    answers = {"recipe": recipe, "teacher": cache, "teacher_model": teacher}
    distill(dataset, STUDENT, settings, folder / "student", name="student", **answers)
    return evaluate(dataset, folder / "student", "val", folder / "evaluation").map or 0.0


def show(rows: list[dict[str, Any]]) -> None:
    """Print the figures."""
    table = Table("top_k", "features", "bytes a view", "score mass", "gradient error", "val mAP50-95, mean of seeds")
    for row in rows:
        table.add_row(
            str(row["top_k"]),
            row["features"],
            f"{row['bytes_per_view']:,.0f}",
            f"{row['score_mass']:.3f}",
            f"{row['gradient_error']:.3f}",
            f"{100 * statistics.mean(row['map']):.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
