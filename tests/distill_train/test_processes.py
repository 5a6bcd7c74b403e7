"""Training by several processes: the same training as by one."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from yolo_distill.components.distill_train.recipe import Recipe, load_recipe
from yolo_distill.components.distill_train.train import choose_teacher, distill
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared import worker
from yolo_distill.components.shared.batch_norm import separate_batch_norm, synchronise_batch_norm
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.launch import LocalProcesses, job_kind, local_launcher
from yolo_distill.components.shared.train_job.choice import training_launcher
from yolo_distill.components.shared.training import TrainingJob, train_settings
from yolo_distill.components.shared.views import Augmentation
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
from yolo_distill.components.teacher_cache_logits.cache import TeacherCache
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat

SETTINGS = train_settings(epochs=2, imgsz=96, batch=16)
MODEL = "yolov8p.yaml"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, digits: DetectionDataset, lively_dir: Path) -> TeacherCache:
    """Answers that keep so few points of each image that images differ in weight."""
    target = tmp_path_factory.mktemp("cache") / "cache"
    build_cache(digits, lively_dir, CacheSettings(Augmentation(imgsz=96), 1, 1, AnswerFormat(top_k=20)), target)
    return TeacherCache(target)


@pytest.fixture
def float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this process and those that it starts compute in float32, where bfloat16's rounding would hide mistakes."""
    write_text(
        tmp_path / "site" / "sitecustomize.py", "import torch\ntorch.cpu._is_avx512_bf16_supported = lambda: False"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


def losses(record: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name.startswith("train/")}


@pytest.mark.usefixtures("float32")
def test_two_processes_train_as_one(tmp_path: Path, digits: DetectionDataset) -> None:
    histories = [
        distill(digits, MODEL, SETTINGS, tmp_path / f"by-{count}", name="plain", launcher=local_launcher(count)).history
        for count in (1, 2)
    ]
    # In the second epoch, a last digit may have given an anchor point to another label.
    for alone, together, tolerance in zip(*histories, (0.001, 0.03), strict=True):
        assert together.keys() == alone.keys()
        assert losses(together) == pytest.approx(losses(alone), rel=tolerance)
    one, two = (load_network(tmp_path / f"by-{count}" / "model.pt") for count in (1, 2))
    assert [type(module) for module in two.modules()] == [type(module) for module in one.modules()]


@pytest.mark.usefixtures("float32")
def test_a_distillation_is_taken_up_by_more_processes(
    tmp_path: Path,
    digits: DetectionDataset,
    cache: TeacherCache,
    lively_dir: Path,
    killed_in_the_second_epoch: Callable,
) -> None:
    arguments = {"name": "s", "recipe": load_recipe("default"), "teacher": cache, "teacher_model": lively_dir}
    whole = distill(digits, MODEL, SETTINGS, tmp_path / "whole", **arguments)
    arguments["work_root"] = tmp_path / "work"
    with killed_in_the_second_epoch():
        distill(digits, MODEL, SETTINGS, tmp_path / "student", **arguments)
    # The processes open the shards that this one has not.
    arguments["teacher"] = choose_teacher(arguments["recipe"], cache.folder, None, here=False)
    assert arguments["teacher"].files == {}
    resumed = distill(digits, MODEL, SETTINGS, tmp_path / "student", **arguments, launcher=LocalProcesses(2))
    assert [record["epoch"] for record in resumed.history] == [1, 2]
    assert resumed.history[0] == whole.history[0]
    # PKD correlates over the points of a process, and losses are recorded with five digits.
    assert losses(resumed.history[1]) == pytest.approx(losses(whole.history[1]), rel=0.03, abs=2e-5)
    assert resumed.card.lineage == whole.card.lineage
    assert not list((tmp_path / "work").rglob("*.pt"))


def job(tmp_path: Path, dataset: Path) -> TrainingJob:
    (tmp_path / "training").mkdir()
    return TrainingJob(dataset=dataset, model=MODEL, settings=SETTINGS, folder=tmp_path / "training")


def test_input_that_a_process_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no-data: is not a dataset artifact.*Give the output of prepare-data"):
        LocalProcesses(1)(job(tmp_path, tmp_path / "no-data"))
    assert not list((tmp_path / "training").iterdir())


def test_the_first_error_of_a_process_is_kept(tmp_path: Path, digits: DetectionDataset) -> None:
    broken = job(tmp_path, digits.root)
    write_text(broken.folder / "weights" / "last.pt", "no checkpoint")
    write_text(tmp_path / "job.json", broken.model_dump_json())
    with pytest.raises(Exception, match=r"last\.pt"):
        worker.main(job_kind(broken), str(tmp_path / "job.json"))
    # What other processes say when they lose the first one.
    worker.leave_error(broken.folder, ConnectionError("closed by peer"))
    left = worker.take_error(broken.folder)
    assert left is not None
    assert left.rank == 0
    assert "last.pt" in str(left.raised())
    assert worker.take_error(broken.folder) is None


def test_processes_end_with_the_step(tmp_path: Path, digits: DetectionDataset) -> None:
    def handler(number: int, frame: object) -> None:
        raise AssertionError("the launcher's own handler was not set")

    before = signal.signal(signal.SIGTERM, handler)
    started: list[psutil.Process] = []

    def terminate() -> None:
        while not started:
            started.extend(psutil.Process().children())
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Timer(0.1, terminate)
    try:
        watcher.start()
        with pytest.raises(SystemExit, match="143"):
            LocalProcesses(1)(job(tmp_path, digits.root))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
        watcher.join()
    assert started
    assert not any(process.is_running() for process in started)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, digits: DetectionDataset) -> None:
    with pytest.raises(InputError, match="batch=16: cannot be shared evenly by 3"):
        LocalProcesses(3)(job(tmp_path, digits.root))


def test_there_is_a_process_for_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_launcher(0, None) is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    every, some = training_launcher(0, None), training_launcher(2, None)
    assert isinstance(every, LocalProcesses)
    assert isinstance(some, LocalProcesses)
    assert (every.count, some.count) == (4, 2)
    assert training_launcher(0, None, shareable=False) is None
    assert training_launcher(1, None) is None
    with pytest.raises(InputError, match="processes=5: there are 4 GPUs"):
        training_launcher(5, None)


@pytest.mark.parametrize("setting", [{"views_momentum": 0.5}, {"calibrate": {"batches": 2}}])
def test_recipes_whose_state_is_one_process_s_are_refused(
    tmp_path: Path, digits: DetectionDataset, cache: TeacherCache, setting: dict
) -> None:
    recipe = Recipe(name="alone", description="", terms=[{"loss": "binary_kl", "weight": 1.0}], **setting)
    with pytest.raises(InputError, match=f"recipe alone: sets {next(iter(setting))}"):
        distill(
            digits,
            MODEL,
            SETTINGS,
            tmp_path / "s",
            name="s",
            recipe=recipe,
            teacher=cache,
            launcher=LocalProcesses(2),
        )


def test_synchronised_batch_normalisation_of_one_process_is_the_ordinary_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5) * 2 + 1
    results = []
    for synchronised in (False, True):
        network = nn.Sequential(nn.BatchNorm2d(3, momentum=0.03))
        if synchronised:
            synchronise_batch_norm(network)
            assert type(network[0]) is not nn.BatchNorm2d
        given = x.clone().requires_grad_()
        outputs = network.train()(given)
        outputs.pow(3).sum().backward()
        separate_batch_norm(network)
        assert type(network[0]) is nn.BatchNorm2d
        measured = [given.grad, outputs.detach(), *network.state_dict().values(), network.eval()(x).detach()]
        results.append([*measured, *(p.grad for p in network.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
