import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kfp.compiler import Compiler

from tests.pipelines.throwaway import PlanThrowaway, throwaway
from yolo_distill.pipelines.plan import RunPlan


@pytest.fixture(scope="session")
def plan_throwaway() -> PlanThrowaway:
    """Plans runs of the throwaway pipeline."""

    def plan(output: Path, count: int = 3, trouble: str = "", cached: bool = True) -> RunPlan:
        made = RunPlan.new(output, {"count": count, "trouble": trouble}, cached=cached)
        made.folder.mkdir(parents=True)
        Compiler().compile(throwaway, str(made.pipeline))
        return made

    return plan


@pytest.fixture(scope="session")
def start_run() -> Callable[[RunPlan], subprocess.Popen[bytes]]:
    """Starts planned runs in processes of their own, as the command line does, to be interrupted."""
    program = (
        "import sys; from pathlib import Path; from rich.console import Console;"
        "from yolo_distill.pipelines.launch import run_pipeline; from yolo_distill.pipelines.plan import RunPlan;"
        "run_pipeline(RunPlan.model_validate_json(Path(sys.argv[1]).read_text()), Console())"
    )

    def start(plan: RunPlan) -> subprocess.Popen[bytes]:
        plan.save()
        return subprocess.Popen([sys.executable, "-c", program, str(plan.file)], stdout=subprocess.DEVNULL)

    return start
