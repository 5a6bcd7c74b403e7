"""Losses on feature maps, each against a slow reference written from its formula."""

import copy
import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from ultralytics.nn.modules.head import Detect

from yolo_distill.components.distill_train.losses.binary_kl import binary_kl
from yolo_distill.components.distill_train.losses.channel_attention import channel_attention, channel_weighted_mse
from yolo_distill.components.distill_train.losses.cross_kd import align_scale, head_outputs
from yolo_distill.components.distill_train.losses.cwd import cwd
from yolo_distill.components.distill_train.losses.feature_mse import feature_mse
from yolo_distill.components.distill_train.losses.fgd import (
    FGDWeights,
    GlobalContext,
    attention_loss,
    box_masks,
    fgd,
    focal_loss,
    relation_loss,
    spatial_attention,
)
from yolo_distill.components.distill_train.losses.grad_cam import cam_weighted_mse, gradient_cam
from yolo_distill.components.distill_train.losses.localization_distillation import localization_distillation
from yolo_distill.components.distill_train.losses.lsp import lsp
from yolo_distill.components.distill_train.losses.mgd import Generation, mgd, random_mask

IMAGES, CHANNELS, HEIGHT, WIDTH = 2, 3, 4, 5
POSITIONS = list(product(range(HEIGHT), range(WIDTH)))
CELLS = list(product(range(CHANNELS), range(HEIGHT), range(WIDTH)))


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _map(seed: int, channels: int = CHANNELS) -> torch.Tensor:
    return _random(IMAGES, channels, HEIGHT, WIDTH, seed=seed)


CAM = _random(IMAGES, HEIGHT, WIDTH, seed=20).sigmoid()
MASK = random_mask(IMAGES, (HEIGHT, WIDTH), 0.5, torch.Generator().manual_seed(0)).double()
BOXES = torch.tensor([[0.5, 0.5, 0.9, 0.6], [0.3, 0.4, 0.35, 0.3]], dtype=torch.float64)
FOREGROUND, BACKGROUND = box_masks(BOXES, torch.tensor([0, 0]), IMAGES, (HEIGHT, WIDTH))


def _seeded(module: Callable[[int], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = module(CHANNELS).double()
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.3)
    return made


GENERATION = _seeded(Generation, 1)
CONTEXTS = _seeded(GlobalContext, 2), _seeded(GlobalContext, 3)


def _softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(v / temperature) for v in values]
    return [p / sum(powers) for p in powers]


def _kl(target: list[float], other: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(target, other, strict=True))


def _reference_channels(features: torch.Tensor, temperature: float) -> list[list[float]]:
    means = [
        [sum(abs(float(image[c, h, w])) for h, w in POSITIONS) / len(POSITIONS) for c in range(CHANNELS)]
        for image in features
    ]
    return [[CHANNELS * share for share in _softmax(row, temperature)] for row in means]


def _reference_positions(features: torch.Tensor, temperature: float) -> list[dict[tuple[int, int], float]]:
    answer = []
    for image in features:
        means = [sum(abs(float(image[c, h, w])) for c in range(CHANNELS)) / CHANNELS for h, w in POSITIONS]
        shares = _softmax(means, temperature)
        answer.append({place: len(POSITIONS) * share for place, share in zip(POSITIONS, shares, strict=True)})
    return answer


def test_feature_mse() -> None:
    student, teacher = _map(1), _map(2)
    expected = sum(float(student[b, c, h, w] - teacher[b, c, h, w]) ** 2 for b in range(IMAGES) for c, h, w in CELLS)
    assert feature_mse(student, teacher).item() == pytest.approx(expected / len(CELLS) / IMAGES, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_channel_weighted_mse(temperature: float) -> None:
    student, teacher = _map(1), _map(2)
    attention = _reference_channels(teacher, temperature)
    expected = sum(
        attention[b][c] * float(student[b, c, h, w] - teacher[b, c, h, w]) ** 2
        for b in range(IMAGES)
        for c, h, w in CELLS
    )
    result = channel_weighted_mse(student, teacher, temperature)
    assert result.item() == pytest.approx(expected / len(CELLS) / IMAGES, rel=1e-9)
    assert torch.allclose(channel_attention(teacher, temperature).mean(1), torch.ones(IMAGES).double())


def test_channel_weighted_mse_asks_most_where_the_teacher_responds() -> None:
    teacher = torch.ones(1, 2, HEIGHT, WIDTH) * torch.tensor([5.0, 0.1]).view(1, 2, 1, 1)
    errors = [teacher + torch.eye(2)[c].view(1, 2, 1, 1) for c in range(2)]
    strong, weak = (channel_weighted_mse(student, teacher).item() for student in errors)
    assert strong > 100 * weak


def test_gradient_cam() -> None:
    features, gradients = _map(1), _map(2)
    cam = gradient_cam(features, gradients)
    for b in range(IMAGES):
        alpha = [sum(float(gradients[b, c, h, w]) for h, w in POSITIONS) / len(POSITIONS) for c in range(CHANNELS)]
        raw = [max(0.0, sum(alpha[c] * float(features[b, c, h, w]) for c in range(CHANNELS))) for h, w in POSITIONS]
        assert cam[b].flatten().tolist() == pytest.approx([value / max(raw) for value in raw], rel=1e-9)


def test_gradient_cam_finds_what_speaks_for_a_score() -> None:
    features = torch.zeros(1, 2, HEIGHT, WIDTH)
    features[0, 0, 1, 2], features[0, 1, 3, 3] = 4.0, 4.0
    features.requires_grad_()
    score = features[0, 0].sum() - features[0, 1].sum()
    (gradients,) = torch.autograd.grad(score, features)
    cam = gradient_cam(features, gradients)
    assert cam.nonzero().tolist() == [[0, 1, 2]]
    assert cam.max() == 1
    assert not cam.requires_grad
    # Gradients as small as those of a mean over many points still give a map up to 1.
    assert gradient_cam(features, gradients * 1e-20).max() == 1
    assert gradient_cam(features, -gradients.abs()).abs().max() == 0


def test_cam_weighted_mse() -> None:
    student, teacher = _map(1), _map(2)
    expected = 0.0
    for b in range(IMAGES):
        total = sum(float(CAM[b, h, w]) * float(student[b, c, h, w] - teacher[b, c, h, w]) ** 2 for c, h, w in CELLS)
        expected += total / CHANNELS / float(CAM[b].sum()) / IMAGES
    assert cam_weighted_mse(student, teacher, CAM).item() == pytest.approx(expected, rel=1e-9)
    assert cam_weighted_mse(student, teacher, torch.zeros_like(CAM)).item() == 0


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd(temperature: float, normalise: bool) -> None:
    student, teacher = 3 * _map(1), _map(2) + 1
    expected = 0.0
    for c in range(CHANNELS):
        rows = []
        for features in (student, teacher):
            values = [[float(features[b, c, h, w]) for h, w in POSITIONS] for b in range(IMAGES)]
            if normalise:
                everything = [v for row in values for v in row]
                mean = sum(everything) / len(everything)
                deviation = math.sqrt(sum((v - mean) ** 2 for v in everything) / len(everything) + 1e-5)
                values = [[(v - mean) / deviation for v in row] for row in values]
            rows.append([_softmax(row, temperature) for row in values])
        expected += sum(_kl(t, s) for s, t in zip(*rows, strict=True))
    expected *= temperature**2 / CHANNELS / IMAGES
    assert cwd(student, teacher, temperature, normalise).item() == pytest.approx(expected, rel=1e-9)


def test_cwd_normalises_as_the_recipe_of_rtmdet_does() -> None:
    student, teacher = 3 * _map(1), _map(2) + 1
    norm = nn.BatchNorm2d(CHANNELS, affine=False, track_running_stats=False).double()
    assert torch.allclose(cwd(student, teacher, normalise=True), cwd(norm(student), norm(teacher)))
    # A channel's factor and offset then say nothing, while without it only the offset does not.
    scaled = 3 * teacher + 5
    assert cwd(scaled, teacher, normalise=True) < 1e-6 < cwd(scaled, teacher)
    assert cwd(teacher + 5, teacher) == pytest.approx(0, abs=1e-12)


def _convolve(image: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
    assert layer.bias is not None
    out = torch.zeros(CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)
    for o, h, w in CELLS:
        total = float(layer.bias[o])
        for c, y, x in product(range(CHANNELS), range(3), range(3)):
            row, column = h + y - 1, w + x - 1
            if 0 <= row < HEIGHT and 0 <= column < WIDTH:
                total += float(layer.weight[o, c, y, x]) * float(image[c, row, column])
        out[o, h, w] = total
    return out


def test_mgd() -> None:
    student, teacher = _map(1), _map(2)
    first, _, second = GENERATION.layers
    expected = 0.0
    with torch.no_grad():
        for b in range(IMAGES):
            made = _convolve(_convolve(student[b] * MASK[b], first).clamp(min=0), second)
            expected += sum(float(made[cell] - teacher[b][cell]) ** 2 for cell in CELLS) / IMAGES
        assert mgd(student, teacher, MASK, GENERATION).item() == pytest.approx(expected, rel=1e-9)


def test_mgd_sees_nothing_of_what_is_masked() -> None:
    student, teacher = _map(1), _map(2)
    altered = torch.where(MASK == 0, 100.0, student)
    assert torch.equal(mgd(student, teacher, MASK, GENERATION), mgd(altered, teacher, MASK, GENERATION))
    # Where nothing is masked and the network passes on what it gets, agreement is 0.
    assert mgd(teacher, teacher, torch.ones_like(MASK), nn.Identity()) == 0


def test_mgd_trains_its_generation() -> None:
    generation = copy.deepcopy(GENERATION)
    mgd(_map(1), _map(2), MASK, generation).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in generation.parameters())


def test_random_mask() -> None:
    def draw(ratio: float) -> torch.Tensor:
        return random_mask(8, (40, 40), ratio, torch.Generator().manual_seed(3))

    assert draw(0.65).shape == (8, 1, 40, 40)
    assert torch.equal(draw(0.65), draw(0.65))
    assert draw(0.65).unique().tolist() == [0, 1]
    assert draw(0.65).mean().item() == pytest.approx(0.35, abs=0.02)
    assert draw(0).min() == 1
    assert draw(1).max() == 0


def test_box_masks() -> None:
    # On a map of 4 by 5, in cells: columns 0.25 to 4.75 and rows 0.8 to 3.2; columns 0.625 to 2.375, rows 1 to 2.2.
    large, small = 1 / 20, 1 / 6
    expected = torch.full((HEIGHT, WIDTH), large).double()
    expected[1:3, 0:3] = small
    assert torch.allclose(FOREGROUND[0], expected)
    assert BACKGROUND[0].max() == 0
    assert FOREGROUND[1].max() == 0
    assert torch.allclose(BACKGROUND[1], torch.full((HEIGHT, WIDTH), 1 / 20).double())


def test_box_masks_at_the_edge_and_for_a_box_without_area() -> None:
    # The second point lies on the corner of four cells.
    boxes = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.4, 0.5, 0.0, 0.0], [0.0, 0.5, 0.4, 2.0]])
    foreground, background = box_masks(boxes, torch.tensor([0, 0, 2]), 3, (HEIGHT, WIDTH))
    assert foreground[0].nonzero().tolist() == [[2, 2], [HEIGHT - 1, WIDTH - 1]]
    assert foreground[0].max() == 1
    assert foreground[2].nonzero().tolist() == [[h, 0] for h in range(HEIGHT)]
    assert torch.allclose(foreground[2].sum(), torch.ones(()))
    assert torch.allclose(background.sum((1, 2)), torch.ones(3))
    none, everywhere = box_masks(boxes[:0], torch.zeros(0, dtype=torch.long), 1, (HEIGHT, WIDTH))
    assert none.max() == 0
    assert torch.allclose(everywhere, torch.full((1, HEIGHT, WIDTH), 1 / 20))


def _reference_context(features: torch.Tensor, block: nn.Module) -> torch.Tensor:
    mask, (first, norm, _, last) = block.mask, block.transform
    out = features.clone()
    for b, image in enumerate(features):
        scores = [
            sum(float(mask.weight[0, c, 0, 0]) * float(image[c, h, w]) for c in range(CHANNELS)) + float(mask.bias)
            for h, w in POSITIONS
        ]
        shares = _softmax(scores, 1)
        context = [
            sum(share * float(image[c, h, w]) for share, (h, w) in zip(shares, POSITIONS, strict=True))
            for c in range(CHANNELS)
        ]
        hidden = [
            sum(float(first.weight[k, c, 0, 0]) * context[c] for c in range(CHANNELS)) + float(first.bias[k])
            for k in range(CHANNELS // 2)
        ]
        mean = sum(hidden) / len(hidden)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in hidden) / len(hidden) + norm.eps)
        hidden = [
            max(0.0, float(norm.weight[k, 0, 0]) * (v - mean) / deviation + float(norm.bias[k, 0, 0]))
            for k, v in enumerate(hidden)
        ]
        for c in range(CHANNELS):
            added = sum(float(last.weight[c, k, 0, 0]) * v for k, v in enumerate(hidden)) + float(last.bias[c])
            out[b, c] += added
    return out


def test_fgd() -> None:
    student, teacher, temperature = _map(1), _map(2), 0.8
    channels = [_reference_channels(features, temperature) for features in (student, teacher)]
    positions = [_reference_positions(features, temperature) for features in (student, teacher)]
    focal = {"foreground": 0.0, "background": 0.0}
    attention = relation = 0.0
    with torch.no_grad():
        contexts = [_reference_context(f, block) for f, block in zip((student, teacher), CONTEXTS, strict=True)]
    for b in range(IMAGES):
        for c, h, w in CELLS:
            square = float(student[b, c, h, w] - teacher[b, c, h, w]) ** 2
            for name, mask in (("foreground", FOREGROUND), ("background", BACKGROUND)):
                focal[name] += float(mask[b, h, w]) * positions[1][b][h, w] * channels[1][b][c] * square / IMAGES
            relation += float(contexts[0][b, c, h, w] - contexts[1][b, c, h, w]) ** 2 / IMAGES
        attention += sum(abs(positions[0][b][place] - positions[1][b][place]) for place in POSITIONS) / IMAGES
        attention += sum(abs(channels[0][b][c] - channels[1][b][c]) for c in range(CHANNELS)) / IMAGES

    assert focal_loss(student, teacher, FOREGROUND, temperature).item() == pytest.approx(focal["foreground"], rel=1e-9)
    assert attention_loss(student, teacher, temperature).item() == pytest.approx(attention, rel=1e-9)
    assert relation_loss(student, teacher, *CONTEXTS).item() == pytest.approx(relation, rel=1e-9)
    weights = FGDWeights(foreground=2, background=3, attention=5, relation=7)
    total = fgd(student, teacher, FOREGROUND, BACKGROUND, *CONTEXTS, weights, temperature)
    expected = 2 * focal["foreground"] + 3 * focal["background"] + 5 * attention + 7 * relation
    assert total.item() == pytest.approx(expected, rel=1e-9)


def test_fgd_without_foreground_keeps_the_background() -> None:
    student, teacher = _map(1), _map(2)
    assert focal_loss(student[1:], teacher[1:], FOREGROUND[1:]) == 0
    assert focal_loss(student[1:], teacher[1:], BACKGROUND[1:]) > 0


def test_attentions_have_a_mean_of_one() -> None:
    assert torch.allclose(spatial_attention(_map(1), 0.5).mean((1, 2)), torch.ones(IMAGES).double())


def test_global_context_starts_as_the_identity_and_is_trained() -> None:
    block = GlobalContext(CHANNELS).double()
    assert torch.equal(block(_map(1)), _map(1))
    blocks = [copy.deepcopy(context) for context in CONTEXTS]
    relation_loss(_map(1), _map(2), *blocks).backward()
    for trained in blocks:
        assert trained.transform[-1].weight.grad.abs().max() > 0


@pytest.mark.parametrize(("window", "temperature"), [(3, 1.0), (5, 0.2)])
def test_lsp(window: int, temperature: float) -> None:
    student, teacher = _map(1), _map(2, channels=7)

    def structure(image: torch.Tensor, h: int, w: int) -> list[float]:
        reach, cosines = window // 2, []
        for y, x in POSITIONS:
            if (y, x) != (h, w) and abs(y - h) <= reach and abs(x - w) <= reach:
                a, b = image[:, h, w].tolist(), image[:, y, x].tolist()
                norms = math.sqrt(sum(v * v for v in a) * sum(v * v for v in b))
                cosines.append(sum(p * q for p, q in zip(a, b, strict=True)) / norms)
        return _softmax(cosines, temperature)

    expected = sum(
        _kl(structure(teacher[b], h, w), structure(student[b], h, w)) for b in range(IMAGES) for h, w in POSITIONS
    )
    result = lsp(student, teacher, window, temperature)
    assert result.item() == pytest.approx(expected / IMAGES / len(POSITIONS), rel=1e-9)


def test_lsp_ignores_scale_and_rotation_of_the_features() -> None:
    teacher = _map(2)
    rotation = torch.linalg.qr(_random(CHANNELS, CHANNELS, seed=3)).Q
    rotated = torch.einsum("dc,bchw->bdhw", rotation, teacher)
    assert lsp(3 * rotated, teacher) == pytest.approx(0, abs=1e-12)


def test_lsp_is_finite_without_neighbours_and_where_nothing_responds() -> None:
    for height, width in ((1, 1), (1, 3), (4, 4)):
        student = torch.zeros(1, 3, height, width, requires_grad=True)
        value = lsp(student, torch.rand(1, 5, height, width), temperature=0.1)
        value.backward()
        assert torch.isfinite(value)
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


def test_lsp_bounds_the_gradient_where_the_student_has_no_direction() -> None:
    student = _map(1)
    student[0, :, 1, 1] = 0
    student.requires_grad_()
    lsp(student, _map(2)).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1000


HEAD_CHANNELS, HEAD_CLASSES = (8, 16), 3


@pytest.fixture(scope="module")
def head() -> Detect:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Detect(nc=HEAD_CLASSES, reg_max=4, ch=HEAD_CHANNELS)
        made.stride = torch.tensor([8.0, 16.0])
        # A few batches, so that the normalisation's statistics are not those it starts with.
        for _ in range(3):
            made([torch.randn(2, c, side, side) for c, side in zip(HEAD_CHANNELS, (6, 3), strict=True)])
    return made.eval().requires_grad_(False)


def _levels(seed: int) -> list[torch.Tensor]:
    return [_random(2, c, side, side, seed=seed + c).float() for c, side in zip(HEAD_CHANNELS, (6, 3), strict=True)]


def test_head_outputs_are_those_of_the_head(head: Detect) -> None:
    boxes, scores = head_outputs(head, _levels(1))
    _, raw = head(_levels(1))
    assert torch.equal(boxes, raw["boxes"])
    assert torch.equal(scores, raw["scores"])
    assert boxes.shape == (2, 16, 45)
    assert scores.shape == (2, HEAD_CLASSES, 45)


def test_head_outputs_pass_gradients_to_the_features_alone(head: Detect) -> None:
    before = copy.deepcopy(head.state_dict())
    student = [level.requires_grad_() for level in _levels(1)]
    with torch.no_grad():
        wanted = head_outputs(head, _levels(2))
    boxes, scores = (
        torch.stack([made, target]).permute(0, 1, 3, 2).flatten(1, 2)
        for made, target in zip(head_outputs(head, student), wanted, strict=True)
    )
    weight = scores[1].sigmoid().amax(1)
    loss = binary_kl(*scores, weight, 1.0) + localization_distillation(*boxes, weight, 1.0)
    loss.backward()
    assert all(level.grad is not None and level.grad.abs().max() > 0 for level in student)
    assert all(parameter.grad is None for parameter in head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_head_outputs_refuse_a_head_that_is_being_trained(head: Detect) -> None:
    for unfrozen in (copy.deepcopy(head).train(), copy.deepcopy(head).requires_grad_(True)):
        with pytest.raises(ValueError, match="being trained"):
            head_outputs(unfrozen, _levels(1))


def test_align_scale() -> None:
    student, teacher = 5 * _map(1) + 2, _map(2)
    aligned = align_scale(student, teacher)
    for moment in (torch.mean, torch.std):
        assert torch.allclose(moment(aligned, (0, 2, 3)), moment(teacher, (0, 2, 3)), rtol=1e-5)
    assert torch.allclose(align_scale(teacher, teacher), teacher, atol=1e-5)
    # Up to the small constant it is a change of scale and offset.
    correlation = torch.corrcoef(torch.stack([aligned[:, 0].flatten(), student[:, 0].flatten()]))[0, 1]
    assert correlation.item() == pytest.approx(1)
    assert gradcheck(lambda s: align_scale(s, teacher), (student.requires_grad_(),))
    assert torch.isfinite(align_scale(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1))).all()


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _losses(images: int, dtype: torch.dtype) -> dict[str, Loss]:
    cam, mask, foreground, background = (t[:images].to(dtype) for t in (CAM, MASK, FOREGROUND, BACKGROUND))
    generation, context, other = (copy.deepcopy(module).to(dtype) for module in (GENERATION, *CONTEXTS))
    return {
        "feature_mse": feature_mse,
        "channel_weighted_mse": channel_weighted_mse,
        "cam_weighted_mse": lambda s, t: cam_weighted_mse(s, t, cam),
        "cwd": lambda s, t: cwd(s, t, 2.0),
        "cwd_normalised": lambda s, t: cwd(s, t, normalise=True),
        "mgd": lambda s, t: mgd(s, t, mask, generation),
        "focal_loss": lambda s, t: focal_loss(s, t, foreground),
        "attention_loss": attention_loss,
        "relation_loss": lambda s, t: relation_loss(s, t, context, other),
        "fgd": lambda s, t: fgd(s, t, foreground, background, context, context, FGDWeights(1, 1, 1, 1)),
        "lsp": lambda s, t: lsp(s, t, temperature=0.2),
    }


NAMES = sorted(_losses(IMAGES, torch.float64))


# MGD and the relation loss put networks between, of which two are not equal.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mgd", "relation_loss")])
def test_zero_when_student_equals_teacher(name: str) -> None:
    same = _map(1)
    assert _losses(IMAGES, torch.float64)[name](same, same.clone()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    loss, teacher = _losses(IMAGES, torch.float64)[name], _map(2)
    assert gradcheck(lambda s: loss(s, teacher), (_map(1).requires_grad_(),))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1, 100])
def test_finite_in_bfloat16(name: str, scale: float) -> None:
    student, teacher = ((scale * _map(seed)).bfloat16() for seed in (1, 2))
    student.requires_grad_()
    value = _losses(IMAGES, torch.bfloat16)[name](student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_zero_without_images(name: str) -> None:
    student = _map(1).requires_grad_()
    nothing = _losses(0, torch.float64)[name](student[:0], _map(2)[:0])
    assert nothing.item() == 0
    nothing.backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0
