"""Kubeflow component: export-mobile."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def export_mobile(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    ncnn: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Convert a PyTorch model to NCNN, for phones, and check that the answers stay the same.

    Fails when a box of the converted model differs by two pixels or a score by a fiftieth.

    Args:
        dataset: Dataset artifact of prepare-data, on whose validation images the models are compared.
        model: PyTorch model artifact.
        ncnn: NCNN model artifact, weights of 16 bits, one image at a time.
        metrics: Largest differences of boxes and scores.
    """
    from pathlib import Path

    from yolo_distill.components.export_mobile.export import export_ncnn
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.task import task_run

    with task_run("export-mobile", name=model.metadata.get("name", "")) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="parity")
        card, parity = export_ncnn(data, Path(model.path), Path(ncnn.path))
        differences = parity.metrics("ncnn")
        run.log_metrics(differences)
        run.log_model(Path(ncnn.path))
    ncnn.metadata.update(card.model_dump(include={"name", "format", "precision"}))
    for key, value in differences.items():
        metrics.log_metric(key, value)
