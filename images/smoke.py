"""Runs steps of the pipeline inside an image as Kubeflow Pipelines would: python3 - < images/smoke.py.

Data is prepared, a teacher trained on it for an epoch and exported to OpenVINO, each by the command of the compiled
pipeline, in a process of its own. It needs nothing but a writable /tmp.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from yolo_distill.components.distill_train.recipe import recipe_names

WORK = Path(os.environ["TMPDIR"]) / "smoke"
STEPS = {
    "prepare-data": ({}, {"source": "digits:train=16,val=8,test=8,size=96"}),
    "train-teacher": (
        {"dataset": ("prepare-data", "dataset")},
        {"model": "yolov8n.yaml", "epochs": 1, "imgsz": 96, "batch": 8, "work_root": ""},
    ),
    "export-openvino": ({"dataset": ("prepare-data", "dataset"), "model": ("train-teacher", "teacher")}, {}),
}


def main() -> None:
    """Check the environment, then run the steps."""
    check_environment()
    WORK.mkdir()
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{WORK}/mlflow.db")
    compiled = WORK / "pipeline.yaml"
    subprocess.run(["yolo-distill", "compile", "--output", str(compiled)], check=True, stdout=subprocess.DEVNULL)  # noqa: S603, S607
    spec = next(yaml.safe_load_all(compiled.read_text()))
    for step, (inputs, parameters) in STEPS.items():
        run(step, spec, inputs, parameters)
    model = next((WORK / "export-openvino" / "openvino").glob("*.xml"))
    print(f"ok: {model.stat().st_size} bytes of {model}")


def check_environment() -> None:
    """Find out what would go wrong on a cluster only: root, a writable root, tools for building, missing files.

    Raises:
        SystemExit: The image is not as it should be.
    """
    if os.getuid() == 0:
        sys.exit("the image runs as root")
    for path in ("/", "/opt/venv", "/usr", "/etc"):
        if os.access(path, os.W_OK):
            sys.exit(f"{path} can be written to")
    for tool in ("gcc", "cc", "make", "git"):
        if any((Path(folder) / tool).exists() for folder in os.environ["PATH"].split(os.pathsep)):
            sys.exit(f"{tool} was left in the image")
    if importlib.util.find_spec("pip"):
        sys.exit("pip was left in the environment")
    if "default" not in recipe_names():
        sys.exit("the package lacks its recipes")


def run(step: str, spec: dict, inputs: dict[str, tuple[str, str]], parameters: dict[str, object]) -> None:
    """Run one task as KFP's launcher does: the component's command with its inputs and outputs as JSON."""
    component = spec["components"][f"comp-{step}"]
    container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
    definitions = component.get("inputDefinitions", {})
    values = {
        name: parameters.get(name, definition.get("defaultValue", ""))
        for name, definition in definitions.get("parameters", {}).items()
    }
    executor_input = {
        "inputs": {
            "parameterValues": values,
            "artifacts": {
                name: {"artifacts": [artifact(WORK / source / output, definitions["artifacts"][name]["artifactType"])]}
                for name, (source, output) in inputs.items()
            },
        },
        "outputs": {
            "artifacts": {
                name: {"artifacts": [artifact(WORK / step / name, definition["artifactType"])]}
                for name, definition in component["outputDefinitions"].get("artifacts", {}).items()
            },
            "outputFile": str(WORK / step / "outputs.json"),
        },
    }
    (WORK / step).mkdir()
    text = json.dumps(executor_input)
    command = [part.replace("{{$}}", text) for part in (*container["command"], *container.get("args", []))]
    subprocess.run(command, check=True)  # noqa: S603
    print(f"ok: {step}", flush=True)


def artifact(path: Path, kind: dict[str, str]) -> dict[str, object]:
    """Return an artifact as the launcher describes it."""
    return {"name": path.name, "uri": str(path), "type": kind, "metadata": {}}


if __name__ == "__main__":
    main()
