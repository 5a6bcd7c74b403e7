"""The five models of a pipeline run, small and poor but real."""

import functools
from pathlib import Path

from yolo_distill.components.benchmark.benchmark import benchmark
from yolo_distill.components.compare.comparison import Role
from yolo_distill.components.evaluate_map.evaluate import evaluate
from yolo_distill.components.export_openvino.export import export
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.quantize.quantize import quantize


@functools.cache
def five_models(dataset: Path, teacher: Path, student: Path) -> dict[Role, Path]:
    """Return model artifacts by role; converted once for all tests that ask."""
    data, folder = DetectionDataset.open(dataset), student.parent / "converted"
    export(data, student, folder / "onnx", folder / "openvino")
    quantize(data, folder / "openvino", folder / "int8", calibration_images=8)
    return {
        "teacher": teacher,
        "plain": student,
        "distilled": student,
        "openvino": folder / "openvino",
        "quantized": folder / "int8",
    }


@functools.cache
def five_evaluations(dataset: Path, teacher: Path, student: Path) -> dict[Role, Path]:
    """Return evaluation artifacts of :func:`five_models` by role."""
    data, evaluations = DetectionDataset.open(dataset), {}
    for role, model in five_models(dataset, teacher, student).items():
        evaluations[role] = student.parent / "evaluations" / role
        evaluate(data, model, "val", evaluations[role])
    return evaluations


@functools.cache
def five_benchmark(dataset: Path, teacher: Path, student: Path) -> Path:
    """Return the benchmark artifact of :func:`five_models`."""
    folder = student.parent / "benchmark"
    benchmark(DetectionDataset.open(dataset), five_models(dataset, teacher, student), 1.0, folder)
    return folder
