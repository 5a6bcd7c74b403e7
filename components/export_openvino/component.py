"""Kubeflow component: export-openvino."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def export_openvino(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    onnx: dsl.Output[dsl.Model],
    openvino: dsl.Output[dsl.Model],
    openvino_fp16: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    pixel_input: bool = False,
):
    """Convert a PyTorch model to ONNX and OpenVINO and check that the answers stay the same.

    Fails when a box of the converted model differs by half a pixel or a score by a thousandth; weights of 16 bits may
    change boxes by two pixels and scores by a fiftieth.

    Args:
        dataset: Dataset artifact of prepare-data, on whose validation images the models are compared.
        model: PyTorch model artifact.
        onnx: ONNX model artifact, FP32, one image at a time.
        openvino: OpenVINO model artifact, FP32, one image at a time.
        openvino_fp16: The same with weights of 16 bits, in half the size.
        metrics: Largest differences of boxes and scores, for every conversion.
        pixel_input: Whether the OpenVINO models take letterboxed images as BGR bytes, height x width x 3, and do the
            rest of the preprocessing themselves.
    """
    from pathlib import Path

    from yolo_distill.components.export_openvino.export import compress, export
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.task import task_run

    with task_run("export-openvino", name=model.metadata.get("name", ""), params={"pixel_input": pixel_input}) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="parity")
        result = export(data, Path(model.path), Path(onnx.path), Path(openvino.path), pixel_input)
        fp16_card, fp16_parity = compress(data, Path(openvino.path), Path(openvino_fp16.path))
        parity = {
            **result.onnx_parity.metrics("onnx"),
            **result.openvino_parity.metrics("openvino"),
            **fp16_parity.metrics("openvino_fp16"),
        }
        run.log_metrics(parity)
        for made in (onnx, openvino, openvino_fp16):
            run.log_model(Path(made.path))
    for made, card in ((onnx, result.onnx), (openvino, result.openvino), (openvino_fp16, fp16_card)):
        made.metadata.update(card.model_dump(include={"name", "format", "precision"}))
    for key, value in parity.items():
        metrics.log_metric(key, value)
