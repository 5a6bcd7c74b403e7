"""Kubeflow component: export-tensorrt."""

from kfp import dsl

from yolo_distill.components.shared.image import TENSORRT_IMAGE


@dsl.component(base_image=TENSORRT_IMAGE, install_kfp_package=False)
def export_tensorrt(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    engine: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    precision: str = "fp16",
    calibration_images: int = 300,
    seed: int = 0,
):
    """Build a TensorRT engine of an ONNX model on an NVIDIA GPU and compare their answers.

    Args:
        dataset: Dataset artifact of prepare-data. Training images calibrate, validation images compare.
        model: ONNX model artifact, FP32.
        engine: TensorRT engine artifact, for this kind of GPU and this version of TensorRT only.
        metrics: Largest differences of boxes and scores.
        precision: fp16 or int8.
        calibration_images: Training images to measure INT8 ranges on; all of them where there are fewer.
        seed: Seed of their draw.
    """
    from pathlib import Path

    from yolo_distill.components.export_tensorrt.export import export_engine
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.task import task_run

    parameters = {"precision": precision, "calibration_images": calibration_images, "seed": seed}
    with task_run("export-tensorrt", name=model.metadata.get("name", ""), params=parameters) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="parity")
        card, parity = export_engine(data, Path(model.path), Path(engine.path), precision, calibration_images, seed)
        differences = parity.metrics("tensorrt")
        run.log_metrics(differences)
        run.log_model(Path(engine.path))
    engine.metadata.update(card.model_dump(include={"name", "format", "precision"}))
    for key, value in differences.items():
        metrics.log_metric(key, value)
