"""Kubeflow component: quantize."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def quantize(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    quantized: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    calibration_images: int = 300,
    seed: int = 0,
    method: str = "nncf",
    max_drop: float = 1.0,
):
    """Quantise an OpenVINO or ONNX model to INT8, calibrated on training images.

    Args:
        dataset: Dataset artifact of prepare-data. Training images calibrate, validation images compare.
        model: OpenVINO model artifact, FP32; an ONNX one for onnx-qdq.
        quantized: Model artifact of the same format, INT8 with its decoding in FP32.
        metrics: Differences of boxes and scores from the FP32 model, on validation images.
        calibration_images: Training images to calibrate with; all of them where there are fewer.
        seed: Seed of their draw.
        method: nncf quantises every convolution, accuracy-aware returns those to floating point that cost most mAP,
            onnx-qdq makes an ONNX model for ONNX Runtime.
        max_drop: Points of mAP50-95, 0 to 100, that accuracy-aware may lose on the validation split.
    """
    from pathlib import Path

    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.quantize.quantize import quantize
    from yolo_distill.components.shared.task import task_run

    parameters = {"calibration_images": calibration_images, "seed": seed, "method": method, "max_drop": max_drop}
    with task_run("quantize", name=model.metadata.get("name", ""), params=parameters) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="calibration")
        card, parity = quantize(
            data, Path(model.path), Path(quantized.path), calibration_images, seed, method, max_drop
        )
        differences = parity.metrics("int8")
        run.log_metrics(differences)
        run.log_model(Path(quantized.path))
    quantized.metadata.update(card.model_dump(include={"name", "format", "precision"}))
    if "drop" in card.lineage:
        metrics.log_metric("map_points_lost", float(card.lineage["drop"]))
    for key, value in differences.items():
        metrics.log_metric(key, value)
