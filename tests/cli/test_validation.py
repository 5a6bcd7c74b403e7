"""Mistakes on the command line: one clear line, within seconds, and nothing left behind."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

PROGRAM = Path(sys.executable).parent / "yolo-distill"


def _run(*arguments: str, folder: Path) -> tuple[int, str, float]:
    started = time.monotonic()
    done = subprocess.run([PROGRAM, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr, time.monotonic() - started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with files that are not what their names say."""
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "list.yaml").write_text("- no\n- model\n")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "recipe.yaml").write_text("name: x\ndescription: x\nterms:\n- {loss: magic, weight: 1}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "--data nowhere: there is no such file or folder. Give a folder"),
        (["--data", "ftp://host/data.zip"], "ftp:// is not supported"),
        (["--data", "https://me:secret@host/data.zip"], "--data https://host/data.zip: the address carries a password"),
        (["--imgsz", "100"], "--imgsz 100: it should be a multiple of 32"),
        (["--epochs", "0"], "--epochs 0: it should be greater than or equal to 1"),
        (["--teacher-epochs", "-3"], "--teacher-epochs -3: it should be greater than or equal to 0"),
        (["--batch", "0"], "--batch 0: it should be greater than or equal to 1"),
        (["--val-fraction", "1.5"], "--val-fraction 1.5: it should be less than 1"),
        (["--val-fraction", "0.6", "--test-fraction", "0.5"], "together with --test-fraction it leaves no image"),
        (["--split", "exam"], "--split exam: it should be 'train', 'val' or 'test'"),
        (["--recipe", "unheard-of"], "unheard-of: there is no such recipe. Give"),
        (["--recipe", "recipe.yaml"], "recipe.yaml: is not a valid recipe: terms.0"),
        (["--teacher-answers", "magic"], "--teacher-answers magic: it should be 'cache', 'original' or 'online'"),
        (["--recipe", "cwd-ld"], "--recipe cwd-ld: cwd needs more of the teacher than a cache keeps"),
        (
            ["--teacher-answers", "original"],
            "--recipe default: localization_distillation, pkd cannot be learnt from --teacher-answers original",
        ),
        (["--pruning", "hard"], "--pruning hard: it should be 'off' or 'on'"),
        (["--keep-flops", "1"], "--keep-flops 1.0: it should be less than 1"),
        (
            ["--pruning", "on", "--teacher-answers", "online"],
            "--pruning on --teacher-answers online: a pruned student is recovered from the cache. Give",
        ),
        (["--quantization", "dynamic"], "--quantization dynamic: it should be 'nncf', 'accuracy-aware' or 'qat'"),
        (
            ["--quantization", "qat", "--teacher-answers", "online"],
            "--quantization qat --teacher-answers online: the student is trained on from the cache. Give",
        ),
        (["--tensorrt", "int8"], "TensorRT: "),
        (["--tensorrt", "int8", "--runner", "docker"], "--tensorrt --runner docker: the containers of KFP's runner"),
        (["--robustness-images", "0"], "--robustness-images 0: it should be greater than or equal to 1"),
        (["--cache-parts", "0"], "--cache-parts 0: it should be greater than or equal to 1"),
        (["--student", "yolov8q.yaml"], "--student yolov8q.yaml: there is no such model. Give a stock model"),
        (["--student", "missing.pt"], "--student missing.pt: there is no such model"),
        (["--cache-root", "gs://bucket"], "--cache-root gs://bucket: is neither a folder nor an s3:// address"),
        (["--cache-root", "recipe.yaml"], "--cache-root recipe.yaml: is not a folder"),
        (["--student", "list.yaml"], "--student list.yaml: is not a model: it has no backbone and head"),
        (["--student", "broken.yaml"], "--student broken.yaml: is not valid YAML"),
        (["--teacher", "text.pt"], "--teacher text.pt: is not a PyTorch checkpoint"),
        (["--output", "text.pt/runs"], "--output text.pt/runs: cannot be written (Not a directory)"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(folder: Path, arguments: list[str], message: str) -> None:
    before = sorted(folder.rglob("*"))
    status, errors, seconds = _run("run", *arguments, folder=folder)
    assert status == 2
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert "secret" not in errors
    assert sorted(folder.rglob("*")) == before
    assert seconds < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--recipes", "default,original"],
            "--recipes default,original: lack the fair arm, a student without",
        ),
        (["--recipes", "plain"], "--recipes ['plain']: List should have at least 2 items"),
        (["--recipes", "plain,unheard-of"], "unheard-of: there is no such recipe. Give"),
        (["--recipes", "plain,recipe.yaml"], "recipe.yaml: is not a valid recipe: terms.0"),
        (["--recipes", "plain,default,default"], "are called plain,default,default, some the same. Give each"),
        (["--seeds", "0,x"], "--seeds ['0', 'x']: it should be a valid integer"),
        (["--seeds", "-1"], "--seeds ['-1']: it should be greater than or equal to 0"),
        (["--seeds", "1,1"], "--seeds 1,1: has one more than once. Give each seed once"),
        (["--imgsz", "100"], "--imgsz 100: it should be a multiple of 32"),
    ],
)
def test_a_mistake_about_an_ablation_is_told_likewise(folder: Path, arguments: list[str], message: str) -> None:
    before = sorted(folder.rglob("*"))
    status, errors, seconds = _run("ablate", *arguments, folder=folder)
    assert status == 2
    assert message in errors
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    assert seconds < 10


def test_containers_without_an_engine_are_told_likewise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    before = sorted(folder.rglob("*"))
    status, errors, _ = _run("run", "--runner=docker", folder=folder)
    assert status == 2
    assert errors.startswith("error: --runner docker: no container engine answers (")
    assert errors.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_the_pipeline_that_was_asked_for_is_compiled(folder: Path) -> None:
    for arguments, file, name in (
        ([], "yolov8-distillation.yaml", "yolov8-distillation"),
        (["--pipeline", "ablation"], "yolov8-ablation.yaml", "yolov8-ablation"),
    ):
        subprocess.run([PROGRAM, "compile", *arguments], cwd=folder, check=True, capture_output=True, timeout=120)
        assert yaml.safe_load((folder / file).read_text())["pipelineInfo"]["name"] == name


def test_a_full_disk_is_found_before_anything_is_written(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=8m tmpfs {disk}"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("this system lets no user mount a small disk of its own")
    command = f"{mount} && {PROGRAM} run --output {disk}/runs; echo status $?; ls {disk}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert "GB are needed and 0.01 GB are free on its disk. Free some space" in done.stderr
    assert done.stdout.splitlines() == ["status 2"]


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["compile", "--help"], ["ablate", "--help"]])
def test_help_says_what_there_is(command: list[str]) -> None:
    done = subprocess.run([PROGRAM, *command], capture_output=True, text=True, timeout=60, check=True)
    wanted = {
        "run": [
            "--data",
            "--teacher",
            "--student",
            "--epochs",
            "--imgsz",
            "[default: digits]",
            "--no-cache",
            "--teacher-answers",
            "--cache-parts",
        ],
        "compile": ["--output", "--pipeline", "--cluster"],
        "ablate": [
            "--data",
            "--recipes",
            "--seeds",
            "--teacher",
            "[default: plain,builtin,default]",
            "[default: 0,1,2]",
        ],
        "--help": ["run", "compile", "--version"],
    }
    assert all(text in done.stdout for text in wanted[command[0]])


def test_version() -> None:
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "yolo-distill 0.1.0\n"
