"""The trials of an ablation: each recipe trained once with each seed, told apart by what travels with the results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolo_distill.components.distill_train.history import TrainingHistory, read_history
from yolo_distill.components.distill_train.recipe import PLAIN
from yolo_distill.components.evaluate_map.evaluation import CONDITIONS, Evaluation, read_evaluation
from yolo_distill.components.shared.errors import InputError

# What all trials must share besides the conditions of evaluation: of the models, and of what they were made from.
_SAME_MODEL = ("architecture", "imgsz", "format", "precision")
_SAME_LINEAGE = ("dataset", "epochs", "pretrained")


@dataclass(frozen=True)
class Trial:
    """One training and its evaluation.

    Attributes:
        arm: The recipe's name, or ``plain``.
        seed: The training's seed.
        folder: The evaluation artifact.
        evaluation: Its figures.
        history: How the training went.
    """

    arm: str
    seed: int
    folder: Path
    evaluation: Evaluation
    history: TrainingHistory


def read_trials(evaluations: Sequence[Path], histories: Sequence[Path]) -> dict[str, list[Trial]]:
    """Read the trials of an ablation.

    Args:
        evaluations: Evaluation artifacts, in any order.
        histories: Training histories of the same models, in any order.

    Returns:
        The trials by arm, each arm's in the order of its seeds, which are the same for all arms.

    Raises:
        InputError: An artifact is not what it should be, a trial is missing or there twice, or they do not compare.
    """
    by_model = {history.model: history for history in map(read_history, histories)}
    trials = [_trial(folder, by_model) for folder in evaluations]
    for trial in trials:
        _require_comparable(trial, trials[0])
    arms: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.arm != PLAIN, trial.arm, trial.seed)):
        arms.setdefault(trial.arm, []).append(trial)
    _require_whole(arms)
    return arms


def _trial(folder: Path, histories: dict[str, TrainingHistory]) -> Trial:
    evaluation = read_evaluation(folder)
    lineage, digest = evaluation.model.lineage, evaluation.model.digest
    if not {"recipe", "seed"} <= lineage.keys():
        raise InputError(
            folder, "is of a model whose card names no recipe and seed", "Give evaluations of distill-train's students"
        )
    if digest not in histories:
        raise InputError(folder, f"has no training history for its model {digest[:12]}", "Give the history beside it")
    return Trial(lineage["recipe"], int(lineage["seed"]), folder, evaluation, histories[digest])


def _require_comparable(trial: Trial, first: Trial) -> None:
    own, expected = _conditions(trial), _conditions(first)
    for what, value in own.items():
        if value != expected[what]:
            raise InputError(
                f"{trial.arm} with seed {trial.seed}",
                f"its {what} is {value}, that of {first.arm} with seed {first.seed} is {expected[what]}",
                "Train and evaluate all recipes under the same conditions",
            )


def _conditions(trial: Trial) -> dict[str, object]:
    evaluation, model = trial.evaluation, trial.evaluation.model
    return (
        {what: getattr(evaluation, what) for what in CONDITIONS}
        | {f"model's {what}": getattr(model, what) for what in _SAME_MODEL}
        | {f"training's {what}": model.lineage.get(what) for what in _SAME_LINEAGE}
    )


def _require_whole(arms: dict[str, list[Trial]]) -> None:
    if PLAIN not in arms or len(arms) < 2:
        raise InputError("recipes", f"are {', '.join(arms) or 'none'}", "Compare plain with at least one recipe")
    expected = [trial.seed for trial in arms[PLAIN]]
    for arm, trials in arms.items():
        seeds = [trial.seed for trial in trials]
        if len(set(seeds)) < len(seeds):
            raise InputError(f"recipe {arm}", f"has seeds {seeds}, one more than once", "Give each trial once")
        if seeds != expected:
            raise InputError(
                f"recipe {arm}", f"has seeds {seeds}, plain has {expected}", "Train every recipe with the same seeds"
            )
    teachers = {t.evaluation.model.lineage.get("teacher") for arm, ts in arms.items() if arm != PLAIN for t in ts}
    if len(teachers) > 1:
        raise InputError("recipes", f"learned from {len(teachers)} different teachers", "Train all with one teacher")
