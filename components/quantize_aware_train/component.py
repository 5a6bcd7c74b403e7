"""Kubeflow component: quantize-aware-train."""

from kfp import dsl

from yolo_distill.components.shared.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def quantize_aware_train(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    student: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    curves: dsl.Output[dsl.HTML],
    history: dsl.Output[dsl.Artifact],
    cache: dsl.Input[dsl.Artifact] = None,
    teacher: dsl.Input[dsl.Model] = None,
    name: str = "quantize-aware",
    recipe: str = "default",
    epochs: int = 5,
    batch: int = 16,
    lr: float = 0.0005,
    seed: int = 0,
    augmentation: str = "",
    work_root: str = "",
    processes: int = 0,
):
    """Train a student on with simulated INT8, from the teacher's answers, so that it loses less when it is quantised.

    Args:
        dataset: Dataset artifact of prepare-data, the one that the student was trained on.
        model: PyTorch model artifact of the trained student.
        student: Model artifact: an ordinary ultralytics checkpoint with its model card, to be exported and quantised.
        metrics: Parameters, GFLOPs and the last validation of the training, with simulated INT8.
        curves: Every loss and validation mAP, with simulated INT8, over the epochs.
        history: The same as history.json: one record an epoch.
        cache: Teacher cache of teacher-cache-logits.
        teacher: Model artifact of the teacher, to ask it at every step: without a cache, or for a recipe that no cache
            can serve. With neither a cache nor a teacher the student is trained on plainly.
        name: How the student is called in tables and lineage.
        recipe: Which distillation losses to use, by name or by the path of a YAML file; plain to train plainly whatever
            else is given.
        epochs: Passes over the training split.
        batch: Images a step.
        lr: Learning rate after warm-up; below that of the student's own training.
        seed: Seed of image order and of the images that ranges are measured on.
        augmentation: Ultralytics' hyperparameters that differ from its defaults, such as fliplr=0,degrees=10; the same
            as the teacher cache was built with.
        work_root: Folder that outlives a killed task, from which an unfinished training resumes.
        processes: Processes that share each batch; 0 for one a GPU, and one where there is none.
    """
    from pathlib import Path

    from yolo_distill.components.distill_train.history import TrainingHistory, write_history
    from yolo_distill.components.distill_train.recipe import PLAIN, load_recipe
    from yolo_distill.components.distill_train.train import choose_teacher
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.quantize_aware_train.train import quantize_aware_train, student_card
    from yolo_distill.components.shared.task import task_run
    from yolo_distill.components.shared.train_job.choice import training_launcher
    from yolo_distill.components.shared.training import train_settings
    from yolo_distill.components.shared.training_report import report_training

    distilling = recipe != PLAIN and (cache is not None or teacher is not None)
    parameters = {"model": model.metadata.get("name", ""), "epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    parameters |= {"augmentation": augmentation, "recipe": recipe if distilling else PLAIN}
    with task_run("quantize-aware-train", name, params=parameters) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="training")
        card = student_card(data, Path(model.path))
        settings = train_settings(
            epochs=epochs, imgsz=card.imgsz, batch=batch, seed=seed, augmentation=augmentation, lr0=lr
        )
        losses = load_recipe(recipe) if distilling else None
        root = Path(work_root) if work_root else None
        launcher = training_launcher(processes, root, shareable=not (losses and losses.needs_one_process))
        sources = cache and Path(cache.path), teacher and Path(teacher.path)
        result = quantize_aware_train(
            data,
            Path(model.path),
            settings,
            Path(student.path),
            name=name,
            recipe=losses,
            teacher=choose_teacher(losses, *sources, here=launcher is None) if losses else None,
            work_root=root,
            launcher=launcher,
        )
        write_history(Path(history.path), TrainingHistory(model=result.card.digest, epochs=result.history))
        title = f"Student {name}, simulated INT8"
        report_training(run, title, result.card, result.history, model=student, curves=curves, metrics=metrics)
