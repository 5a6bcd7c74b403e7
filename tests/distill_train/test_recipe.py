from pathlib import Path

import pytest

from yolo_distill.components.distill_train.recipe import Schedule, load_recipe, recipe_names
from yolo_distill.components.shared.errors import InputError


def test_every_shipped_recipe_loads_under_its_name() -> None:
    assert "default" in recipe_names()
    for name in recipe_names():
        assert load_recipe(name).name == name


@pytest.mark.parametrize("name", ["nonsense", "../recipes/default", "missing.yaml", ""])
def test_an_unknown_recipe_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=r"no such recipe.*default"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ("[{loss: nonsense, weight: 1}]", "terms.0"),
        ("[{loss: pkd, weight: .nan}]", "weight"),
        ("[{loss: pkd, weight: -1}]", "weight"),
        ("[{loss: pkd, weight: 0}]", "never turns the loss on"),
        ("[{loss: pkd, weight: {start: 0, end: 0}}]", "never turns the loss on"),
        ("[{loss: pkd, weight: 1, temperature: 3}]", "temperature"),
        ("[{loss: pkd, weight: 1}, {loss: pkd, weight: 2}]", "more than once"),
        ("[]", "terms"),
        ("[{loss: binary_kl, weight: 1, temperature: 0}]", "temperature"),
        ("[{loss: binary_kl, weight: 1, temperature: {start: 5, end: 0}}]", "temperature falls to 0"),
        ("[{loss: pkd, weight: {start: 1, end: 0, kind: step}}]", "a step needs until below 1"),
        ("[{loss: pkd, weight: 1, region: nowhere}]", "region"),
        ("[{loss: cwd, weight: 1, layers: [-1]}]", "layers"),
        ("[{loss: lsp, weight: 1, window: 4}]", "window"),
        ("[{loss: bckd, weight: 1, gamma: 0.5}]", "gamma"),
        ("[{loss: pkd, weight: 1}]\nviews_momentum: 0.9", "views_momentum has nothing to act on"),
        ("[{loss: cwd, weight: 1}]\nadaptive: [disagreement]", "adaptive has nothing to act on"),
        ("[{loss: attention_transfer, weight: 1}]\nprojector: mlp", "projector must be linear"),
        ("[{loss: pkd, weight: 1}]\ncalibrate: {ratio: .inf}", "calibrate.ratio"),
        ("[{loss: pkd, weight: 1}]\ntraining: {optimizer: Magic}", "training.optimizer"),
        ("[{loss: pkd, weight: 1}]\nteacher: online", "teacher"),
    ],
)
def test_a_bad_recipe_is_refused_by_field(tmp_path: Path, terms: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"name: bad\ndescription: bad\nterms: {terms}\n")
    with pytest.raises(InputError, match=message):
        load_recipe(str(path))


def test_broken_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: [")
    with pytest.raises(InputError, match="not valid YAML"):
        load_recipe(str(path))


def test_schedules_go_from_start_to_end() -> None:
    linear = Schedule(start=5, end=1, until=0.5)
    assert [linear.at(p) for p in (0, 0.25, 0.5, 1)] == [5, 3, 1, 1]
    cosine = Schedule(start=0, end=2, kind="cosine")
    assert [cosine.at(p) for p in (0, 0.5, 1)] == pytest.approx([0, 1, 2])
    assert cosine.at(0.25) < 0.5


def test_a_step_happens_at_its_time() -> None:
    step = Schedule(start=2, end=0, kind="step", until=0.5)
    assert [step.at(p) for p in (0, 0.49, 0.5, 1)] == [2, 2, 0, 0]


def test_recipes_know_what_they_need_of_the_teacher() -> None:
    needs = {name: load_recipe(name).needs_online for name in recipe_names()}
    assert {name for name, losses in needs.items() if losses} == {"article", "cwd-ld", "mgd", "fgd", "cross-kd"}
    assert [name for name in recipe_names() if not load_recipe(name).needs_same_view] == ["bckd", "original"]
