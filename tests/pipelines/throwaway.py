"""Pipelines that do next to nothing, for the tests of what runs pipelines."""

from collections.abc import Callable
from typing import List  # noqa: UP035  KFP knows a list of artifacts by this name

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


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def note(word: str, made: dsl.Output[dsl.Artifact]):
    import os
    import time
    from pathlib import Path

    kind, _, path = word.partition(" ")
    if kind == "bad":
        from yolo_distill.components.shared.errors import InputError
        from yolo_distill.components.shared.task import task_run

        with task_run("note"):
            Path(path).mkdir()
            raise InputError("bad", "is no word", "Give another")
    if kind == "later":
        while not Path(path).parent.exists():
            time.sleep(0.1)
        time.sleep(2)
    if kind == "endless":
        Path(path).write_text(str(os.getpid()))
        time.sleep(300)
    Path(made.path).write_text(word)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def join(words: dsl.Input[List[dsl.Artifact]], made: dsl.Output[dsl.Artifact]):  # noqa: UP006
    from pathlib import Path

    Path(made.path).write_text(" ".join(Path(word.path).read_text() for word in words))


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def read(text: dsl.Input[dsl.Artifact]) -> str:
    from pathlib import Path

    return Path(text.path).read_text()


_WORDS = ["a"]


@dsl.pipeline(name="branches")
def branches(way: str = "loop", words: list[str] = _WORDS):
    with dsl.If(way == "loop"):
        with dsl.ParallelFor(words, parallelism=2) as word:
            noted = note(word=word).set_display_name("Note a word")
        joined = join(words=dsl.Collected(noted.outputs["made"]))
    with dsl.Else():
        alone = note(word="alone")
    told = read(text=dsl.OneOf(joined.outputs["made"], alone.outputs["made"]))
    with dsl.If(told.output == "alone"):
        note(word="end")
