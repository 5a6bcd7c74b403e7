"""A pipeline that does next to nothing, for the tests of what runs pipelines."""

from collections.abc import Callable

from kfp import dsl

from yolo_distill.pipelines.plan import RunPlan

PlanThrowaway = Callable[..., RunPlan]


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def make(numbers: dsl.Output[dsl.Dataset], metrics: dsl.Output[dsl.Metrics], count: int = 3):
    from pathlib import Path

    from yolo_distill.components.shared.progress import report_progress

    for number in range(count):
        report_progress(number + 1, count, "number", f"now {number}")
    Path(numbers.path).mkdir(parents=True)
    (Path(numbers.path) / "numbers.txt").write_text(str(count))
    numbers.metadata["count"] = count
    metrics.log_metric("count", count)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def use(numbers: dsl.Input[dsl.Dataset], metrics: dsl.Output[dsl.Metrics], trouble: str = ""):
    import os
    import subprocess
    import time
    from pathlib import Path

    from yolo_distill.components.shared.errors import InputError
    from yolo_distill.components.shared.task import task_run

    if trouble == "input":
        with task_run("use"):
            raise InputError("numbers", "are odd", "Give even ones")
    if trouble == "bug":
        raise ZeroDivisionError("a bug of the step")
    if trouble:
        sleeper = subprocess.Popen(["sleep", "300"])
        Path(trouble).write_text(f"{os.getpid()} {sleeper.pid}")
        time.sleep(300)
    metrics.log_metric("half", int((Path(numbers.path) / "numbers.txt").read_text()) / 2)


@dsl.pipeline(name="throwaway")
def throwaway(count: int = 3, trouble: str = ""):
    made = make(count=count).set_display_name("Make numbers")
    use(numbers=made.outputs["numbers"], trouble=trouble).set_display_name("Use numbers")
