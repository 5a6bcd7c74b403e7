"""The tasks of a compiled pipeline, as far as they are known before it runs: those in loops and branches as well."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class PlannedTask:
    """A task that a run will come to.

    Attributes:
        name: Its name in the pipeline; in a loop with the number of the iteration, see :func:`iteration_name`.
        title: How people call it; in a loop with the iteration's item.
        skipped: Whether the run's arguments rule it out.
    """

    name: str
    title: str
    skipped: bool = False


def planned_tasks(pipeline: Path, arguments: Mapping[str, object]) -> list[PlannedTask]:
    """Return the tasks of a compiled pipeline, upstream tasks first.

    A loop's tasks are there once an iteration. The tasks of a branch count as skipped where the arguments alone decide
    against it; one that waits for a task's output may still turn out to be skipped.

    Args:
        pipeline: The compiled pipeline.
        arguments: What it is run with; the others have their defaults.

    Raises:
        ValueError: A loop goes over what only a task will tell.
    """
    specification = yaml.safe_load(pipeline.read_text(encoding="utf-8"))
    root = specification["root"]
    inputs = root.get("inputDefinitions", {}).get("parameters", {})
    defaults = {name: entry["defaultValue"] for name, entry in inputs.items() if "defaultValue" in entry}
    return list(_Graph(specification["components"]).tasks(root["dag"], {**defaults, **arguments}))


def iteration_name(task: str, iterations: list[int]) -> str:
    """Return what a task is called in a loop.

    Args:
        task: Its name in the pipeline.
        iterations: The number of the iteration, counted from 0, for each loop around it.
    """
    return task + "".join(f"-iteration-{number}" for number in iterations)


def step_name(task: str) -> str:
    """Return a task's name without the number that KFP gives a component's tasks from the second one on."""
    return re.sub(r"-\d+$", "", task)


class _Graph:
    def __init__(self, components: Mapping[str, Any]) -> None:
        self._components = components

    def tasks(
        self,
        dag: Mapping[str, Any],
        known: Mapping[str, object],
        iterations: tuple[int, ...] = (),
        items: str = "",
        skipped: bool = False,
    ) -> Iterator[PlannedTask]:
        for name in _upstream_first(dag["tasks"]):
            task = dag["tasks"][name]
            inputs = _known_inputs(task, known)
            inner = self._components[task["componentRef"]["name"]].get("dag")
            ruled_out = skipped or _is_ruled_out(task, inputs)
            if inner is None:
                title = task["taskInfo"]["name"] + items
                yield PlannedTask(iteration_name(name, list(iterations)), title, ruled_out)
            elif "parameterIterator" in task or "artifactIterator" in task:
                values = _items(name, task, inputs)
                for number, value in enumerate(values):
                    scope = {**inputs, task["parameterIterator"]["itemInput"]: value}
                    label = f"{items} ({_spoken(value)})" if len(values) > 1 else items
                    yield from self.tasks(inner, scope, (*iterations, number), label, ruled_out)
            else:
                yield from self.tasks(inner, inputs, iterations, items, ruled_out)


def _upstream_first(tasks: Mapping[str, Any]) -> list[str]:
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = 1 + max((depth(upstream) for upstream in tasks[name].get("dependentTasks", [])), default=0)
        return depths[name]

    return sorted(tasks, key=lambda name: (depth(name), name))


def _known_inputs(task: Mapping[str, Any], known: Mapping[str, object]) -> dict[str, object]:
    inputs: dict[str, object] = {}
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "runtimeValue" in source:
            inputs[name] = source["runtimeValue"]["constant"]
        elif source.get("componentInputParameter") in known:
            inputs[name] = known[source["componentInputParameter"]]
    return inputs


def _items(name: str, task: Mapping[str, Any], inputs: Mapping[str, object]) -> list[object]:
    source = task.get("parameterIterator", {}).get("items", {})
    items = json.loads(source["raw"]) if "raw" in source else inputs.get(source.get("inputParameter"))
    if not isinstance(items, list):
        raise ValueError(f"what {name} goes over is not known before the pipeline runs")
    return items


def _spoken(item: object) -> object:
    """Return what people call the item of a loop: a student, where an iteration is told more than one thing."""
    return item["student"] if isinstance(item, dict) else item


def _is_ruled_out(task: Mapping[str, Any], inputs: Mapping[str, object]) -> bool:
    condition = task.get("triggerPolicy", {}).get("condition", "")
    needed = re.findall(r"parameter_values\['([^']+)'\]", condition)
    if not needed or not inputs.keys() >= set(needed):
        return False
    # Late, because KFP takes a second to import. Its own judgement, so that it is what the run will come to.
    from kfp.local.io import IOStore
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator

    store = IOStore()
    for name, value in inputs.items():
        store.put_parent_input(name, value)
    return not ConditionEvaluator.evaluate_condition(condition, store)
