"""The comparison in words and rows."""

from yolo_distill.components.compare.comparison import ComparedModel, Comparison
from yolo_distill.components.evaluate_map.difference import LEVEL, points, span
from yolo_distill.components.shared.summary import Summary

COLUMNS = (
    "Model",
    "Runtime",
    "Params (M)",
    "GFLOPs",
    "Size (MB)",
    "mAP50-95",
    "mAP50",
    "Latency p50 (ms)",
    "Throughput (img/s)",
)

_TITLES = {
    "teacher": "Teacher",
    "plain": "Student, plain",
    "distilled": "Student, distilled",
    "openvino": "Student, distilled",
    "quantized": "Student, distilled",
}
_SPOKEN = {
    "teacher": "teacher",
    "plain": "plain",
    "distilled": "distilled",
    "openvino": "OpenVINO",
    "quantized": "INT8",
}
_RUNTIMES = {
    "pytorch": "PyTorch",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ncnn": "NCNN",
    "tensorrt": "TensorRT",
}
# Others' work slows single images by more than models differ.
_QUIET = 0.1


def summary(comparison: Comparison) -> Summary:
    """Return a comparison's table, findings and caveats."""
    return Summary(
        title="Comparison of teacher and students",
        columns=COLUMNS,
        text_columns=2,
        rows=[_row(model) for model in comparison.models],
        findings=_findings(comparison),
        caveats=_caveats(comparison),
    )


def title(model: ComparedModel) -> str:
    """Return how a table calls a model, without its runtime."""
    return f"{_TITLES[model.role]} ({model.architecture.removesuffix('.yaml').removesuffix('.pt')})"


def runtime(model: ComparedModel) -> str:
    """Return how a table calls what runs a model."""
    return f"{_RUNTIMES[model.format]} {model.precision.upper()}"


def _row(model: ComparedModel) -> tuple[str, ...]:
    return (
        title(model),
        runtime(model),
        f"{model.parameters / 1e6:.2f}",
        f"{model.gflops:.2f}",
        f"{model.size_bytes / 1e6:.1f}",
        f"{100 * model.map:.1f}",
        f"{100 * model.map50:.1f}",
        f"{model.latency_ms:.1f}",
        f"{model.throughput:.1f}",
    )


def _findings(comparison: Comparison) -> list[str]:
    teacher, distilled = comparison.model_of("teacher"), comparison.model_of("distilled")
    openvino, quantized = comparison.model_of("openvino"), comparison.model_of("quantized")
    kept = {"distilled": comparison.retained(distilled), "INT8": comparison.retained(quantized)}
    return [
        f"Distilled against plain student: {comparison.gain:+z.1f} points mAP50-95.",
        *(f"The {name} student keeps {part:.1f} % of the teacher's mAP50-95." for name, part in kept.items() if part),
        f"INT8 against OpenVINO {openvino.precision.upper()}: {-comparison.int8_drop:+z.1f} points mAP50-95, "
        f"{openvino.latency_ms / quantized.latency_ms:.1f}x as fast, "
        f"{_percent(quantized.size_bytes, openvino.size_bytes)} of the size.",
        f"INT8 against the teacher in {_RUNTIMES[teacher.format]}: {comparison.speed_up(quantized):.1f}x as fast, "
        f"{_percent(quantized.size_bytes, teacher.size_bytes)} of the size, "
        f"{_percent(quantized.parameters, teacher.parameters)} of the parameters.",
        *_intervals(comparison),
    ]


def _intervals(comparison: Comparison) -> list[str]:
    known = [
        f"{_SPOKEN[one.role]} against {_SPOKEN[one.against]} {points(one.map.estimate)} ({span(one.map)})"
        for one in comparison.differences
    ]
    return [f"With {100 * LEVEL:g} % intervals over images, in points mAP50-95: {', '.join(known)}."] if known else []


def _caveats(comparison: Comparison) -> list[str]:
    machine, settings = comparison.machine, comparison.settings
    caveats = [
        f"Accuracy: {comparison.images} images with {comparison.boxes} boxes of the {comparison.split} split, "
        f"{settings.protocol}, in per cent. One training with one seed each: another seed may turn a difference of a "
        "point or two. The intervals, a paired bootstrap, know of other images alone.",
        f"Speed: {machine.cpu}, {machine.threads} threads. Latency is one image from decoded pixels to boxes, "
        "throughput is the network alone.",
    ]
    if any(model.format == "pytorch" for model in comparison.models):
        caveats.append("PyTorch files store their weights in 16 bits and are run in 32.")
    if comparison.disturbance > _QUIET:
        caveats.append(
            f"Other programs took {_percent(comparison.disturbance, 1)} of the machine while speed was measured: "
            "measure again on a quiet one."
        )
    return caveats


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"
