"""Writes a component's inputs and outputs into its README, and what was measured into that of the benchmarks.

What stands between ``<!-- generated:start -->`` and ``<!-- generated:end -->`` in ``components/<step>/README.md`` and
``benchmarks/README.md`` is replaced. With ``--check`` nothing is written, and a README that would change is an error.
"""

import argparse
import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

import docstring_parser
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.structures import InputSpec
from promises import promises_table

START, END = "<!-- generated:start -->", "<!-- generated:end -->"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 1 if ``--check`` finds a README that is not fresh.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a README is not fresh")
    check = parser.parse_args(arguments).check
    stale = [readme for readme in readmes(Path(__file__).parent.parent) if fresh_text(readme) != readme.read_text()]
    for readme in stale:
        print(f"{readme} {'is not fresh: run python scripts/generate_readmes.py' if check else 'written'}")
        if not check:
            readme.write_text(fresh_text(readme), encoding="utf-8")
    return int(check and bool(stale))


def readmes(root: Path) -> list[Path]:
    """Return the README of every component and of the benchmarks below a checkout, whether or not it exists."""
    components = sorted(root.glob("components/*/component.py"))
    return [*(component.with_name("README.md") for component in components), root / "benchmarks" / "README.md"]


def fresh_text(readme: Path) -> str:
    """Return what a README should say.

    Raises:
        SystemExit: The README is missing or has no place for what is generated.
    """
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if START not in text or END not in text:
        sys.exit(f"{readme} needs the lines {START} and {END}")
    before, after = text.partition(START)[0], text.partition(END)[2]
    folder = readme.parent
    if folder.name == "benchmarks":
        generated = f"\n{promises_table(folder / 'results')}\n"
    else:
        generated = _inputs_and_outputs(_component(folder.name))
    return f"{before}{START}\n{generated}{END}{after}"


def _component(step: str) -> BaseComponent:
    module = importlib.import_module(f"yolo_distill.components.{step}.component")
    (component,) = (value for value in vars(module).values() if isinstance(value, BaseComponent))
    return component


def _inputs_and_outputs(component: BaseComponent) -> str:
    spec = component.component_spec
    documented = docstring_parser.parse(inspect.getdoc(component.python_func) or "")
    descriptions = {entry.arg_name: " ".join((entry.description or "").split()) for entry in documented.params}
    inputs = [
        (f"`{name}`", _type(value.type), _default(value), descriptions[name])
        for name, value in (spec.inputs or {}).items()
    ]
    outputs = [(f"`{name}`", _type(value.type), descriptions[name]) for name, value in (spec.outputs or {}).items()]
    return (
        f"\n## Inputs\n\n{_table(('Name', 'Type', 'Default', 'Description'), inputs)}"
        f"\n## Outputs\n\n{_table(('Name', 'Type', 'Description'), outputs)}\n"
    )


def _type(kfp_type: str) -> str:
    """Return a type's short name: ``Model`` for ``system.Model@0.0.1``, ``int`` for ``Integer``."""
    python = {"String": "str", "Integer": "int", "Float": "float", "Boolean": "bool"}
    return python.get(kfp_type, kfp_type.removeprefix("system.").partition("@")[0])


def _default(value: InputSpec) -> str:
    if not value.optional:
        return "required"
    return "none" if value.default is None else f"`{value.default!r}`"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
