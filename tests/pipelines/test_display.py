"""What a person sees while a pipeline runs."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from yolo_distill.pipelines.display import run_display
from yolo_distill.pipelines.events import RunWatch, TaskEvent, event_file, write_event
from yolo_distill.pipelines.graph import PlannedTask

TASKS = [
    PlannedTask("prepare", "Prepare the data"),
    PlannedTask("train", "Train"),
    PlannedTask("other", "Train in another way", skipped=True),
    PlannedTask("compare", "Compare"),
]


@pytest.fixture
def watch(tmp_path: Path) -> RunWatch:
    """A run that has prepared its data, is training and has not compared yet."""
    now = time.time()
    write_event(tmp_path, "prepare", TaskEvent(time=now - 100, state="running"))
    write_event(tmp_path, "prepare", TaskEvent(time=now - 95, state="done", outputs={"dataset": Path("/data")}))
    write_event(tmp_path, "train", TaskEvent(time=now - 61, state="running"))
    write_event(tmp_path, "train", TaskEvent(time=now - 5, done=12, total=30, unit="epoch", note="loss 1.5"))
    return RunWatch(tmp_path, TASKS)


def _shown_on_terminal(watch: RunWatch) -> str:
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
    with run_display(watch, console) as display:
        display.update(watch.poll())
    assert isinstance(console.file, io.StringIO)
    # The last state that the table was drawn in.
    return console.file.getvalue().rpartition("Prepare")[2]


def test_a_terminal_shows_every_task_and_how_far_the_running_one_is(watch: RunWatch) -> None:
    prepared, training, other, comparing, total = _shown_on_terminal(watch).splitlines()[:5]
    assert prepared.split() == ["the", "data", "done", "0:05"]
    assert "Train" in training and "1:01" in training
    assert "epoch 12/30  loss 1.5" in training
    bar = training.split()[2]
    assert bar == "━━━━━━━━━╸", "12 of 30 make 9.6 of 24 characters"
    assert other.split() == ["-", "Train", "in", "another", "way", "skipped"]
    assert comparing.split() == ["·", "Compare", "waiting"]
    assert total.split()[:4] == ["1", "of", "3", "tasks"], "one of the four is none of the run's"


def test_the_bar_grows_with_the_task(watch: RunWatch, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system="standard")
    with run_display(watch, console) as display:
        display.update(watch.poll())
        time.sleep(0.3)
        write_event(tmp_path, "train", TaskEvent(done=30, total=30, unit="epoch"))
        display.update(watch.poll())
        time.sleep(0.3)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "epoch 12/30" in shown and shown.index("epoch 12/30") < shown.index("epoch 30/30")
    # The whole bar in the colour of what is done.
    assert "━" * 24 in shown


def test_a_failed_task_shows_why(watch: RunWatch, tmp_path: Path) -> None:
    write_event(tmp_path, "train", TaskEvent(error="images: there are none. Add some"))
    write_event(tmp_path, "train", TaskEvent(state="failed"))
    training = _shown_on_terminal(watch).splitlines()[1]
    assert training.split()[:3] == ["✗", "Train", "failed"]
    assert "images: there are none. Add some" in training


def test_without_a_terminal_there_is_a_line_for_each_change(watch: RunWatch, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=40)
    with run_display(watch, console) as display:
        display.update(watch.poll())
        write_event(tmp_path, "train", TaskEvent(state="done"))
        display.update(watch.poll())
        write_event(tmp_path, "compare", TaskEvent(state="cached"))
        display.update(watch.poll())
        display.update(watch.poll())
    assert isinstance(console.file, io.StringIO)
    lines = [line.partition("] ")[2] for line in console.file.getvalue().splitlines()]
    assert lines == ["Prepare the data: done in 0:05", "Train: running", "Train: done in 1:01", "Compare: cached"]


def test_a_line_that_is_still_being_written_is_read_later(tmp_path: Path) -> None:
    watch = RunWatch(tmp_path, TASKS)
    line = TaskEvent(state="running").model_dump_json() + "\n"
    with event_file(tmp_path, "train").open("w") as file:
        file.write(line[:10])
        file.flush()
        assert watch.poll() == []
        file.write(line[10:])
    assert [task.name for task in watch.poll()] == ["train"]
    assert watch.tasks["train"].state == "running"
    assert watch.poll() == []
