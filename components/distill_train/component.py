"""Kubeflow component: distill-train."""

from kfp import dsl

from yolo_distill.components.shared.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def distill_train(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    student: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    curves: dsl.Output[dsl.HTML],
    history: dsl.Output[dsl.Artifact],
    cache: dsl.Input[dsl.Artifact] = None,
    teacher: dsl.Input[dsl.Model] = None,
    initial: dsl.Input[dsl.Model] = None,
    name: str = "distilled",
    model: str = "yolov8n.yaml",
    recipe: str = "default",
    epochs: int = 30,
    imgsz: int = 320,
    batch: int = 16,
    seed: int = 0,
    augmentation: str = "",
    work_root: str = "",
    processes: int = 0,
):
    """Train the student from the teacher's answers, cached or asked for at every step, or plainly.

    The plain training is the fair arm of the comparison: same data, augmentation, epochs, optimiser and seed.

    Args:
        dataset: Dataset artifact of prepare-data.
        student: Model artifact: an ordinary ultralytics checkpoint with its model card.
        metrics: Parameters, GFLOPs and the last validation of the training.
        curves: Every loss and validation mAP over the epochs.
        history: The same as history.json: one record an epoch.
        cache: Teacher cache of teacher-cache-logits.
        teacher: Model artifact of the teacher, for recipes that start the student from its weights, and to ask it at
            every step: without a cache, or for a recipe that no cache can serve. With neither a cache nor a teacher the
            student is trained plainly.
        initial: Model artifact to go on training, such as a pruned one, in place of the named model.
        name: How the student is called in tables and lineage.
        model: A stock model YAML such as yolov8n.yaml, a slim one of this step, or the path of a .yaml or .pt file.
        recipe: Which distillation losses to use, by name or by the path of a YAML file; plain to train plainly whatever
            else is given.
        epochs: Passes over the training split.
        imgsz: Side of the square input in pixels, a multiple of 32.
        batch: Images a step.
        seed: Seed of initial weights and image order.
        augmentation: Ultralytics' hyperparameters that differ from its defaults, such as fliplr=0,degrees=10; the same
            as the teacher cache was built with.
        work_root: Folder that outlives a killed task, from which an unfinished training resumes.
        processes: Processes that share each batch; 0 for one a GPU, and one where there is none.
    """
    from pathlib import Path

    from yolo_distill.components.distill_train.history import TrainingHistory, write_history
    from yolo_distill.components.distill_train.recipe import PLAIN, load_recipe
    from yolo_distill.components.distill_train.train import choose_teacher, distill
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.task import task_run
    from yolo_distill.components.shared.train_job.choice import training_launcher
    from yolo_distill.components.shared.training import train_settings
    from yolo_distill.components.shared.training_report import report_training

    source = initial.metadata.get("architecture", "") if initial else model
    parameters = {"model": source, "epochs": epochs, "imgsz": imgsz, "batch": batch, "seed": seed}
    parameters["augmentation"] = augmentation
    distilling = recipe != PLAIN and (cache is not None or teacher is not None)
    parameters["recipe"] = recipe if distilling else PLAIN
    with task_run("distill-train", name, params=parameters) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="training")
        losses = load_recipe(recipe) if distilling else None
        sources = cache and Path(cache.path), teacher and Path(teacher.path)
        root = Path(work_root) if work_root else None
        launcher = training_launcher(processes, root, shareable=not (losses and losses.needs_one_process))
        answers = choose_teacher(losses, *sources, here=launcher is None) if losses else None
        result = distill(
            data,
            model,
            train_settings(epochs=epochs, imgsz=imgsz, batch=batch, seed=seed, augmentation=augmentation),
            Path(student.path),
            name=name,
            recipe=losses,
            teacher=answers,
            teacher_model=teacher and Path(teacher.path),
            initial=initial and Path(initial.path),
            work_root=root,
            launcher=launcher,
        )
        write_history(Path(history.path), TrainingHistory(model=result.card.digest, epochs=result.history))
        title = f"Student {name}"
        report_training(run, title, result.card, result.history, model=student, curves=curves, metrics=metrics)
