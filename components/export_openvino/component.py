"""Kubeflow component: export-openvino."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def export_openvino(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    onnx: dsl.Output[dsl.Model],
    openvino: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Convert a PyTorch model to ONNX and OpenVINO and check that the answers stay the same.

    Fails when a box of the converted model differs by half a pixel or a score by a thousandth.

    Args:
        dataset: Dataset artifact of prepare-data, on whose validation images the models are compared.
        model: PyTorch model artifact.
        onnx: ONNX model artifact, FP32, one image at a time.
        openvino: OpenVINO model artifact, FP32, one image at a time.
        metrics: Largest differences of boxes and scores, for both conversions.
    """
    from pathlib import Path

    from yolo_distill.components.export_openvino.export import export
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.task import task_run

    with task_run("export-openvino", name=model.metadata.get("name", "")) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="parity")
        result = export(data, Path(model.path), Path(onnx.path), Path(openvino.path))
        parity = {**result.onnx_parity.metrics("onnx"), **result.openvino_parity.metrics("openvino")}
        run.log_metrics(parity)
        run.log_model(Path(onnx.path))
        run.log_model(Path(openvino.path))
    onnx.metadata.update(result.onnx.model_dump(include={"name", "format", "precision"}))
    openvino.metadata.update(result.openvino.model_dump(include={"name", "format", "precision"}))
    for key, value in parity.items():
        metrics.log_metric(key, value)
