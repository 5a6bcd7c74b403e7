"""Kubeflow component: evaluate-robustness."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def evaluate_robustness(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    robustness: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    source: dsl.Input[dsl.Model] = None,
    split: str = "val",
    images: int = 100,
    seed: int = 0,
    corruptions: str = "all",
    severities: str = "1,2,3,4,5",
    epsilons: str = "1,2,4,8",
    pgd_steps: int = 10,
):
    """Measure how accurate a model stays on corrupted and on adversarial images.

    Args:
        dataset: Dataset artifact of prepare-data.
        model: Model artifact whose classes are the dataset's.
        robustness: Folder with robustness.json, which holds every figure, and the page.
        report: mAP over epsilon, over severity and by corruption as a page.
        metrics: mAP on clean, corrupted and attacked images, mPC and rPC, 0 to 1.
        source: PyTorch model artifact by whose gradient attacks are made, for a model through which none flows (ONNX,
            OpenVINO); without one, the model itself is attacked.
        split: The split to measure on: train, val or test. Its unlabelled images do not count.
        images: Images of the split to draw; 0 for all of them.
        seed: Seed of that draw and of everything random.
        corruptions: Names of COCO-C's corruptions, separated by commas; all of them, or empty for none.
        severities: How severe each, 1 to 5, separated by commas.
        epsilons: Largest change of a pixel by an attack, in steps of 1/255, separated by commas; empty for no attack.
        pgd_steps: Steps of PGD.
    """
    from pathlib import Path

    from yolo_distill.components.evaluate_robustness.evaluate import evaluate_robustness
    from yolo_distill.components.evaluate_robustness.robustness import REPORT_NAME, ROBUSTNESS_NAME, parse_settings
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.files import write_bytes
    from yolo_distill.components.shared.task import task_run

    parameters = {
        "corruptions": corruptions,
        "severities": severities,
        "epsilons": epsilons,
        "pgd_steps": pgd_steps,
        "images": images,
        "seed": seed,
    }
    folder = Path(robustness.path)
    name = model.metadata.get("name", "")
    with task_run("evaluate-robustness", name=name, params={"split": split, **parameters}) as run:
        settings = parse_settings(corruptions, severities, epsilons, pgd_steps, images, seed)
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="evaluation")
        attacked = Path(source.path) if source else None
        result = evaluate_robustness(data, Path(model.path), split, settings, folder, attacked)
        run.use_model(Path(model.path))
        run.log_metrics(result.metrics)
        run.set_tags({"model": result.model.name, "model_digest": result.model.digest})
        for file in (ROBUSTNESS_NAME, REPORT_NAME):
            run.log_artifact(folder / file)
    write_bytes(Path(report.path), (folder / REPORT_NAME).read_bytes())
    robustness.metadata.update({"model": result.model.name, "split": result.split})
    for key, value in result.metrics.items():
        metrics.log_metric(key, value)
