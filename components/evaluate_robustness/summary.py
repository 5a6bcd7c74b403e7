"""Robustness in words and rows."""

from collections.abc import Mapping

from yolo_distill.components.evaluate_robustness.robustness import Robustness
from yolo_distill.components.shared.summary import Summary


def summary(models: Mapping[str, Robustness]) -> Summary:
    """Return a table of one or more models and what to be careful about.

    Args:
        models: How robust each is, by the name that it is called; all measured on the same images in the same way.
    """
    first = next(iter(models.values()))
    attacks = [(one.attack, epsilon) for one in first.attacks for epsilon in one.by_epsilon]
    corruptions = ("mPC", "rPC") if first.corruptions else ()
    return Summary(
        title="Robustness" if len(models) > 1 else f"Robustness of {next(iter(models))}",
        columns=("Model", "clean", *corruptions, *(f"{name} {epsilon:g}/255" for name, epsilon in attacks)),
        text_columns=1,
        rows=[_row(name, one) for name, one in models.items()],
        findings=[],
        caveats=_caveats(models),
    )


def _row(name: str, model: Robustness) -> tuple[str, ...]:
    corruptions = (_percent(model.mpc), _percent(model.rpc)) if model.corruptions else ()
    attacks = [_percent(at.map) for one in model.attacks for at in one.by_epsilon.values()]
    return name, _percent(model.clean.map), *corruptions, *attacks


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _caveats(models: Mapping[str, Robustness]) -> list[str]:
    first = next(iter(models.values()))
    measured = first.measured
    caveats = [
        f"mAP50-95 in per cent on {len(first.images)} images with {first.boxes} boxes of the {first.split} split"
        f"{f', drawn by seed {measured.seed}' if measured.images else ''}, {first.settings.protocol}.",
    ]
    if first.corruptions:
        extent = (
            "all 15 corruptions of COCO-C at 5 severities"
            if first.complete
            else f"{', '.join(measured.corruptions)} at severity {', '.join(map(str, measured.severities))} alone, "
            "which compares with no published figure"
        )
        caveats.append(f"mPC is the mean over {extent}; rPC is its share of clean.")
    if first.attacks:
        caveats.append(
            f"noise, FGSM and PGD ({measured.pgd_steps} steps) change no pixel of the network's input by more than the "
            "given part. Noise is the control. A weak attack proves no strength: stronger ones exist."
        )
        caveats += [_attacked(name, model) for name, model in models.items() if model.source]
    return caveats


def _attacked(name: str, model: Robustness) -> str:
    if model.white_box:
        return f"{name}: a white-box attack, by its own gradient."
    source = model.source
    assert source is not None
    return (
        f"{name}: a transfer attack, by the gradient of {source.name} ({source.digest[:12]}); an attacker who knows "
        "this model in full may do worse to it."
    )
