"""Kubeflow component: register-model."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def register_model(  # noqa: ANN201
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    registration: dsl.Output[dsl.Artifact],
    registered_name: str = "yolo-distill",
):
    """Register a model in MLflow's registry.

    The model's files are stored with the MLflow run. The new version carries the digests of the model, of the dataset
    and of what the model was made from, and becomes the challenger; it becomes the champion only where there is none.

    Args:
        model: Model artifact to register, of any format.
        evaluation: Evaluation of this model.
        dataset: Dataset that the evaluation was made on.
        registration: Folder with registration.json, which holds name, version and address in the registry.
        registered_name: Name of the registered model; it is made when it is missing.
    """
    from pathlib import Path

    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.register_model.register import register
    from yolo_distill.components.shared.task import task_run

    with task_run("register-model", params={"registered_name": registered_name}) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="evaluation")
        result = register(Path(model.path), Path(evaluation.path), data, registered_name, Path(registration.path), run)
    registration.metadata.update(result.model_dump(include={"name", "version", "uri"}))
