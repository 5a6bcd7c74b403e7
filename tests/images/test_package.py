"""What is installed of the package, in the images and elsewhere."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("components", "pipelines")


def test_every_file_is_installed(tmp_path: Path) -> None:
    source, built = tmp_path / "source", tmp_path / "built"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "build_py", f"--build-lib={built}"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "absent from the `packages` configuration" not in done.stderr
    files = [path for folder in FOLDERS for path in (source / folder).rglob("*") if path.is_file()]
    installed = {path.relative_to(built / "yolo_distill") for path in built.rglob("*") if path.is_file()}
    assert installed == {path.relative_to(source) for path in files}
