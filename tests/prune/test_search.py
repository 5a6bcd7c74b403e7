import itertools
import math

import pytest

from yolo_distill.components.prune.architecture import Place
from yolo_distill.components.prune.search import TOLERANCE, UnreachableTargetError, choose_widths, possible_cuts

FIRST, SECOND = Place(0, "output"), Place(1, "output")


def share(widths):
    """A network of two layers: the first is read by the second."""
    return (3 * widths[FIRST] + widths[FIRST] * widths[SECOND]) / (3 * 64 + 64 * 128)


def cuts(first, second, max_ratio=0.75):
    return possible_cuts(FIRST, first, 8, max_ratio) + possible_cuts(SECOND, second, 8, max_ratio)


def test_a_layer_is_cut_in_steps_down_to_what_may_go():
    scores = [1 - index / 20 for index in range(20)]
    found = possible_cuts(FIRST, scores, 8, 0.75)
    # 20 is no multiple of 8, so that the first step is smaller; 5 channels would be enough, but 8 are the least.
    assert [cut.width for cut in found] == [16, 8]
    assert [cut.worth for cut in found] == [pytest.approx(sum(scores[16:]) / 4), pytest.approx(sum(scores[8:16]) / 8)]
    assert [cut.width for cut in possible_cuts(FIRST, scores, 8, 0.2)] == [16]
    assert possible_cuts(FIRST, scores[:8], 8, 0.9) == []


@pytest.mark.parametrize("target", [0.1, 0.3, 0.5, 0.8, 0.95])
def test_the_target_is_reached(target):
    full = {Place(index, "output"): 16 * (index + 1) for index in range(12)}
    flat = [cut for place, width in full.items() for cut in possible_cuts(place, [1.0] * width, 8, 0.75)]

    def chain(widths):
        inputs = [3, *widths.values()]
        return sum(a * b for a, b in itertools.pairwise(inputs))

    widths = choose_widths(full, flat, lambda widths: chain(widths) / chain(full), target)
    assert math.isclose(chain(widths) / chain(full), target, rel_tol=TOLERANCE)
    assert all(width % 8 == 0 and width >= full[place] / 4 for place, width in widths.items())


def test_what_is_worth_little_goes_first():
    unequal = cuts([1.9] * 32 + [0.1] * 32, [1.0] * 128)
    assert choose_widths({FIRST: 64, SECOND: 128}, unequal, share, 0.5) == {FIRST: 32, SECOND: 128}


def test_a_cut_that_is_too_large_is_passed_over():
    # The first layer's 8 channels are worth nothing, but cost an eighth.
    unequal = cuts([1.0] * 56 + [0.0] * 8, [0.5] * 128)
    widths = choose_widths({FIRST: 64, SECOND: 128}, unequal, share, 0.94)
    assert widths == {FIRST: 64, SECOND: 120}


def test_a_target_below_all_cuts_says_how_far_it_came():
    with pytest.raises(UnreachableTargetError) as error:
        choose_widths({FIRST: 64, SECOND: 128}, cuts([1.0] * 64, [1.0] * 128, 0.5), share, 0.1)
    assert error.value.reached == pytest.approx(share({FIRST: 32, SECOND: 64}))


def test_steps_that_are_too_coarse_are_an_error():
    with pytest.raises(UnreachableTargetError) as error:
        choose_widths({FIRST: 64, SECOND: 128}, possible_cuts(FIRST, [1.0] * 64, 32, 0.75), share, 0.75)
    assert error.value.reached == 1
