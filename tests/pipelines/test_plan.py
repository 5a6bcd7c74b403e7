"""When results of earlier runs are no longer taken over."""

from importlib import metadata

import pytest

from yolo_distill.pipelines.plan import code_digest


def test_libraries_of_models_and_pipeline_count_and_tools_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "1", "kfp": "1", "pytest": "1"}
    requirements = ["numpy", 'kfp[kubernetes]<3; extra == "pipeline"', 'pytest; extra == "dev"', 'absent; extra == "x"']
    monkeypatch.setattr(metadata, "requires", lambda _: requirements)
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    first = code_digest()
    assert code_digest() == first
    versions["pytest"] = "2"
    assert code_digest() == first
    versions["kfp"] = "2"
    second = code_digest()
    versions["numpy"] = "2"
    assert len({first, second, code_digest()}) == 3


def test_a_library_that_another_variant_stands_in_for_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["no-such-library"])
    assert len(code_digest()) == 64
