"""Kubeflow component: train-teacher."""

from kfp import dsl

from yolo_distill.components.shared.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def train_teacher(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    teacher: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    curves: dsl.Output[dsl.HTML],
    model: str = "yolov8s.yaml",
    epochs: int = 30,
    imgsz: int = 320,
    batch: int = 16,
    seed: int = 0,
    augmentation: str = "",
    work_root: str = "",
    processes: int = 0,
):
    """Train the teacher, or take one that fits.

    A checkpoint whose classes are the dataset's is taken as it is, one with other classes is fine-tuned, and a model
    YAML is trained from random weights.

    Args:
        dataset: Dataset artifact of prepare-data.
        teacher: Model artifact: an ordinary ultralytics checkpoint with its model card.
        metrics: Parameters, GFLOPs and the last validation of the training.
        curves: Losses and validation mAP over the epochs.
        model: A stock model YAML such as yolov8x.yaml, or the path of a .yaml or .pt file.
        epochs: Passes over the training split; 0 to take a checkpoint as it is or refuse it.
        imgsz: Side of the square input in pixels, a multiple of 32.
        batch: Images a step.
        seed: Seed of initial weights, augmentation order and image order.
        augmentation: Ultralytics' hyperparameters that differ from its defaults, such as fliplr=0,degrees=10.
        work_root: Folder that outlives a killed task, from which an unfinished training resumes.
        processes: Processes that share each batch; 0 for one a GPU, and one where there is none.
    """
    from pathlib import Path

    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.task import task_run
    from yolo_distill.components.shared.train_job.choice import training_launcher
    from yolo_distill.components.shared.training import train_settings
    from yolo_distill.components.shared.training_report import report_training
    from yolo_distill.components.train_teacher.train import train_teacher

    parameters = {
        "model": model,
        "epochs": epochs,
        "imgsz": imgsz,
        "batch": batch,
        "seed": seed,
        "augmentation": augmentation,
    }
    with task_run("train-teacher", params=parameters) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="training")
        # Without epochs the settings serve for the size alone.
        settings = train_settings(epochs=epochs or 1, imgsz=imgsz, batch=batch, seed=seed, augmentation=augmentation)
        root = Path(work_root) if work_root else None
        result = train_teacher(
            data,
            model,
            settings,
            Path(teacher.path),
            root,
            may_train=epochs != 0,
            launcher=training_launcher(processes, root),
        )
        title = f"Teacher {result.card.architecture}"
        report_training(run, title, result.card, result.history, model=teacher, curves=curves, metrics=metrics)
