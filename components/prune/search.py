"""Finds how wide each layer stays, by what its channels are worth all over the network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from yolo_distill.components.prune.architecture import Place

# How far from the target the search may end, as a part of the target, and from where it need not go on.
TOLERANCE = 0.02
_CLOSE = 0.005

Widths = Mapping[Place, int]


class UnreachableTargetError(ValueError):
    """No choice of widths costs what was asked for.

    Attributes:
        reached: The share that the search ended at.
    """

    def __init__(self, reached: float) -> None:
        super().__init__(f"ended at {reached:.3f}")
        self.reached = reached


@dataclass(frozen=True)
class Cut:
    """One step of narrowing a layer.

    Attributes:
        place: What is narrowed.
        width: Channels that it has afterwards.
        worth: What the channels that go are worth on average.
    """

    place: Place
    width: int
    worth: float


def possible_cuts(place: Place, scores: Sequence[float], step: int, max_ratio: float) -> list[Cut]:
    """List the steps by which a layer can be narrowed, in their order.

    Args:
        place: What is narrowed.
        scores: What its channels are worth, best first.
        step: Widths are multiples of this.
        max_ratio: Largest part of the channels that may go, in 0..1.
    """
    full, floor = len(scores), max(step, (1 - max_ratio) * len(scores))
    cuts, before = [], full
    for width in range((full - 1) // step * step, 0, -step):
        if width < floor:
            break
        cuts.append(Cut(place, width, sum(scores[width:before]) / (before - width)))
        before = width
    return cuts


def choose_widths(full: Widths, cuts: Iterable[Cut], share: Callable[[Widths], float], target: float) -> Widths:
    """Cut what is worth the least until the network costs its target.

    Args:
        full: The widths to start from.
        cuts: All possible cuts, those of one place in their order and of rising worth.
        share: What part of its cost a network of given widths has left, in 0..1; falls with every cut.
        target: The part to keep.

    Returns:
        The widths.

    Raises:
        UnreachableTargetError: All cuts together do not suffice, or the steps are too coarse.
    """
    ordered = sorted(cuts, key=lambda cut: cut.worth)

    def after(count: int) -> Widths:
        return {**full, **{cut.place: cut.width for cut in ordered[:count]}}

    # The most cuts that leave no less than the target.
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if share(after(middle)) >= target else (low, middle - 1)
    widths, reached = after(low), share(after(low))
    # The next one is too large; smaller ones that are worth a little more may bring it closer.
    for slack in (_CLOSE, TOLERANCE):
        closed: set[Place] = set()
        for cut in ordered[low:]:
            if reached <= target * (1 + slack):
                break
            candidate = {**widths, cut.place: cut.width}
            if cut.place in closed or (left := share(candidate)) < target * (1 - slack):
                closed.add(cut.place)
            elif cut.width < widths[cut.place]:
                widths, reached = candidate, left
    if abs(reached / target - 1) > TOLERANCE:
        raise UnreachableTargetError(reached)
    return widths
