"""Kubeflow component: evaluate-map."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def evaluate_map(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    split: str = "val",
):
    """Measure a model's mean average precision by the COCO protocol.

    Takes PyTorch, ONNX and OpenVINO models alike, all with the same preprocessing and non-maximum suppression.

    Args:
        dataset: Dataset artifact of prepare-data.
        model: Model artifact whose classes are the dataset's.
        evaluation: Figures overall, per class and per box size, every detection and label as COCO JSON, and a picture.
        metrics: The overall figures, 0 to 1.
        confusion: What labelled objects are detected as, with a row and a column for the background; of more than 100
            classes those that are confused most.
        report: Figures by class, precision over recall of each, and the confusion matrix as a page.
        split: The split to measure on: train, val or test. Its unlabelled images do not count.
    """
    from pathlib import Path

    from yolo_distill.components.evaluate_map.confusion import condensed, read_confusion
    from yolo_distill.components.evaluate_map.evaluate import evaluate
    from yolo_distill.components.evaluate_map.evaluation import PICTURE_NAME, REPORT_NAME
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.files import write_bytes
    from yolo_distill.components.shared.task import task_run

    name = model.metadata.get("name", "")
    with task_run("evaluate-map", name=name, params={"split": split}) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="evaluation")
        result = evaluate(data, Path(model.path), split, Path(evaluation.path))
        run.use_model(Path(model.path))
        run.log_metrics(result.metrics)
        run.set_tags({"model": result.model.name, "model_digest": result.model.digest})
        for file in (PICTURE_NAME, REPORT_NAME):
            run.log_artifact(Path(evaluation.path) / file)
    write_bytes(Path(report.path), (Path(evaluation.path) / REPORT_NAME).read_bytes())
    counted = condensed(read_confusion(Path(evaluation.path)), most=100)
    confusion.log_confusion_matrix(counted.categories, counted.matrix)
    evaluation.metadata.update({"model": result.model.name, "split": result.split, **result.metrics})
    for key, value in result.metrics.items():
        metrics.log_metric(key, value)
