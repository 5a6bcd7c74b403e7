"""What every component must have beside its code."""

from pathlib import Path

import generate_readmes as generator
import pytest
import yaml

from yolo_distill.components.shared.files import write_text

ROOT = Path(__file__).parent.parent.parent
STEPS = sorted(component.parent for component in ROOT.glob("components/*/component.py"))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_the_readme_is_fresh(step: Path) -> None:
    readme = step / "README.md"
    assert readme.read_text() == generator.fresh_text(readme), "run python scripts/generate_readmes.py"


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_the_metadata_is_complete(step: Path) -> None:
    metadata = yaml.safe_load((step / "metadata.yaml").read_text())
    assert metadata["name"] == step.name.replace("_", "-")
    assert metadata["stability"] in {"alpha", "beta", "stable"}
    assert metadata["description"].endswith(".")
    assert metadata["tags"]
    assert metadata["lastVerified"]
    assert [entry["name"] for entry in metadata["dependencies"]["kubeflow"]] == ["Pipelines"]
    assert isinstance(metadata["dependencies"]["external_services"], list)


def test_what_changes_in_a_component_shows_in_its_readme(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "components" / "benchmark" / "README.md"
    stale = "# benchmark\n\nBy hand.\n\n<!-- generated:start -->\nold\n<!-- generated:end -->\n\n## After\n"
    write_text(readme, stale)
    monkeypatch.setattr(generator, "readmes", lambda _: [readme])
    assert generator.main(["--check"]) == 1
    assert readme.read_text() == stale
    assert f"{readme} is not fresh" in capsys.readouterr().out
    assert generator.main([]) == 0
    text = readme.read_text()
    assert text.startswith("# benchmark\n\nBy hand.\n")
    assert text.endswith("<!-- generated:end -->\n\n## After\n")
    assert "| `dataset` | Dataset | required | Dataset artifact of prepare-data; " in text
    assert "| `seconds` | float | `6.0` | Measuring time for each model, " in text
    assert "| `results` | Artifact | Folder with benchmark.json, " in text
    assert generator.main(["--check"]) == 0


def test_a_readme_without_a_place_for_it_is_an_error(tmp_path: Path) -> None:
    write_text(tmp_path / "README.md", "# by hand\n")
    with pytest.raises(SystemExit, match="needs the lines"):
        generator.fresh_text(tmp_path / "README.md")
