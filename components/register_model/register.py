"""Registers a model in MLflow's registry."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from yolo_distill.components.evaluate_map.evaluation import Evaluation, read_evaluation
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.register_model.registration import Registration, write_registration
from yolo_distill.components.shared import lineage
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory
from yolo_distill.components.shared.model_card import ModelCard, read_card
from yolo_distill.components.shared.task import TaskRun

CHAMPION, CHALLENGER = "champion", "challenger"


def register(
    model: Path, evaluation: Path, dataset: DetectionDataset, registered_name: str, output: Path, run: TaskRun
) -> Registration:
    """Store a model with its run and make it a new version in the registry.

    The version becomes ``challenger``, and ``champion`` too where there is none yet. An existing champion stays: to
    replace it takes a comparison.

    Args:
        model: The model artifact.
        evaluation: Its evaluation.
        dataset: The dataset that it was evaluated on.
        registered_name: The registered model, made when it is missing.
        output: Where the registration artifact appears.
        run: What the model's files, metrics and origin are recorded to.

    Returns:
        The registration, as written.

    Raises:
        InputError: The evaluation is of another model or dataset, or MLflow refuses the name.
    """
    card, measured = read_card(model), read_evaluation(evaluation)
    _require_match(card, measured, dataset, evaluation)
    client = MlflowClient()
    _require_registered_model(client, registered_name)
    model_id = run.use_model(model)
    run.log_metrics(measured.metrics)
    source = run.store_folder(model, "model")
    version = client.create_model_version(
        registered_name,
        source,
        run.run_id,
        tags=_tags(card, model, measured),
        description=_description(card, measured),
        model_id=model_id,
    )
    registration = Registration(
        name=registered_name,
        version=int(version.version),
        uri=f"models:/{registered_name}/{version.version}",
        source=source,
        run_id=run.run_id,
        digest=card.digest,
        aliases=_set_aliases(client, registered_name, str(version.version)),
    )
    with new_directory(output) as folder:
        write_registration(folder, registration)
    return registration


def _require_match(card: ModelCard, measured: Evaluation, dataset: DetectionDataset, evaluation: Path) -> None:
    remedy = "Give the evaluation of this very model on this very dataset"
    if measured.model.digest != card.digest:
        raise InputError(evaluation, "is of another model", remedy)
    if measured.dataset != dataset.digest:
        raise InputError(evaluation, "was made on another dataset", remedy)


def _require_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise InputError(f"registered_name={name!r}", f"MLflow refuses it: {error}", "Choose another") from error


def _set_aliases(client: MlflowClient, name: str, version: str) -> list[str]:
    taken = client.get_registered_model(name).aliases
    aliases = [CHALLENGER] if CHAMPION in taken else [CHALLENGER, CHAMPION]
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version)
    return aliases


def _tags(card: ModelCard, model: Path, measured: Evaluation) -> dict[str, str]:
    """Return what a version carries, so that one finds back to pixels and teacher from it alone."""
    figures = {f"evaluation.{name}": f"{value:.6f}" for name, value in measured.metrics.items()}
    return {
        **lineage.model_tags(card, model),
        **lineage.source_tags(),
        lineage.DATASET_DIGEST_TAG: measured.dataset,
        "evaluation.split": measured.split,
        "evaluation.images": str(measured.images),
        **figures,
    }


def _description(card: ModelCard, measured: Evaluation) -> str:
    accuracy = f"mAP50-95 {measured.map:.3f}" if measured.map is not None else "no mAP"
    return (
        f"{card.name}, {card.architecture}, {card.format} {card.precision} at {card.imgsz} px: {accuracy} on "
        f"{measured.images} images of the {measured.split} split."
    )
