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
