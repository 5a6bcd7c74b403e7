import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from ultralytics.nn.modules import C2f
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.distill_train.recipe import load_recipe
from yolo_distill.components.distill_train.train import STUDENTS_FOLDER, choose_teacher, distill
from yolo_distill.components.prune import architecture
from yolo_distill.components.prune.channels import IMPORTANCES, ChannelGraph, kept_widths, place_scores
from yolo_distill.components.prune.prune import Target, accumulate_gradients, prune, pruning_target
from yolo_distill.components.prune.split import merged_weights, split_network
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import read_card, write_card
from yolo_distill.components.shared.training import train_settings
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact

PICO = str(STUDENTS_FOLDER / "yolov8p.yaml")
# An interpreter that has ultralytics, and neither this package nor Torch-Pruning.
PLAIN = """
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {"torch_pruning", "yolo_distill"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from ultralytics import YOLO
"""


def random_network(source: str, classes: int) -> DetectionModel:
    """A network whose batch norms do something, as those of a trained one."""
    torch.manual_seed(0)
    network = DetectionModel(source, nc=classes, verbose=False).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.3, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return network


def artifact(folder: Path, network: DetectionModel, classes: list[str], imgsz: int = 64) -> Path:
    network.names = dict(enumerate(classes))
    network.args = {}
    torch.save({"model": network, "ema": None, "train_args": {}, "epoch": -1}, folder / "source.pt")
    name = Path(network.yaml["yaml_file"]).name
    write_checkpoint_artifact(
        folder / "model", folder / "source.pt", name="tiny", imgsz=imgsz, architecture=name, lineage={"seed": "0"}
    )
    return folder / "model"


def halved(network: DetectionModel) -> dict[architecture.Place, int]:
    """Every width at about a half, and no two the same part of the original."""
    steps = architecture.width_steps(network)
    return {
        place: max(steps[place], (width // 2 + 8 * (place.layer % 2)) // steps[place] * steps[place])
        for place, width in architecture.stated_widths(network).items()
    }


@pytest.mark.parametrize(("source", "classes"), [(PICO, 3), ("yolov8n.yaml", 80)], ids=["pico", "nano"])
def test_a_split_network_computes_the_same(source, classes):
    network, images = random_network(source, classes), torch.rand(1, 3, 64, 64)
    split = split_network(network)
    assert not any(isinstance(layer, C2f) for layer in split.modules())
    with torch.inference_mode():
        assert torch.equal(split(images)[0], network(images)[0])
    assert {name: weight.tolist() for name, weight in merged_weights(split).items()} == {
        name: weight.tolist() for name, weight in network.state_dict().items()
    }


@pytest.mark.parametrize(("source", "classes"), [(PICO, 3), ("yolov8n.yaml", 80)], ids=["pico", "nano"])
def test_the_rebuilt_network_is_the_pruned_one_and_the_original_without_those_channels(source, classes):
    network, images = random_network(source, classes), torch.rand(1, 3, 64, 64)
    split = split_network(network)
    graph = ChannelGraph(split, "group_l2")
    described = architecture.explicit_yaml(network, halved(network))
    kept = kept_widths(split, architecture.skeleton(described))
    silenced = silence(network, graph, kept)
    graph.shrink(kept)
    rebuilt = architecture.build(described, merged_weights(split))
    with torch.inference_mode():
        expected, pruned, found = silenced(images)[0], split(images)[0], rebuilt(images)[0]
    assert architecture.stated_widths(rebuilt) == halved(network)
    assert torch.allclose(found, pruned, rtol=0, atol=1e-5)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def silence(network: DetectionModel, graph: ChannelGraph, kept: dict[str, int]) -> DetectionModel:
    """A split network in its full width whose least channels are zero: SiLU leaves 0 as it is."""
    network = split_network(network)
    layers = dict(network.model.named_modules())
    for group in graph.groups:
        for name in group.members:
            lowest = group.scores.argsort(stable=True)[: len(group.scores) - kept[name]]
            norm = layers[name.removesuffix("conv") + "bn"]
            norm.weight.data[lowest] = norm.bias.data[lowest] = 0.0
    return network


def test_the_model_yaml_says_every_width_that_ultralytics_would_build():
    network = random_network("yolov8n.yaml", 80)
    for hidden in range(8, 168, 8):
        for output in range(8, 520, 8):
            widths = dict.fromkeys(architecture.stated_widths(network), output)
            widths[architecture.Place(4, "hidden")] = hidden
            row = architecture.explicit_yaml(network, widths)["backbone"][4]
            assert int(row[3][0] * row[3][3]) == hidden


def test_coupled_channels_are_found_through_shortcuts_and_all_others_are_free():
    network = random_network("yolov8n.yaml", 80)
    groups = {frozenset(group.members) for group in ChannelGraph(split_network(network), "group_l2").groups}
    # With a shortcut, a bottleneck's output goes with its input; the neck has none.
    assert {"4.cv1.conv", "4.m.0.cv2.conv", "4.m.1.cv2.conv"} in groups
    assert {"12.cv1.conv"} in groups
    assert {"12.m.0.cv2.conv"} in groups
    last = {f"22.{branch}.{level}.2" for branch in ("cv2", "cv3") for level in range(3)}
    assert not last & set().union(*groups)


def test_scores_order_channels_by_the_size_of_their_weights():
    network = random_network(PICO, 3)
    block = network.model[3]
    block.conv.weight.data[5] = block.bn.weight.data[5] = 0.0
    network.model[4].cv1.conv.weight.data[:, 5] = 0.0
    for importance in ("group_l2", "bn_scale"):
        (group,) = (g for g in ChannelGraph(split_network(network), importance).groups if "3.conv" in g.members)
        assert group.scores.argmin() == 5
        assert group.scores[5] < 0.2
        assert group.scores.mean() == pytest.approx(1)


def test_taylor_scores_come_from_the_loss_on_training_images(digits):
    network = random_network(PICO, 10)
    # A channel that is never read changes nothing, whatever its size.
    block = network.model[3]
    block.conv.weight.data[5] *= 10
    network.model[4].cv1.conv.weight.data[:, 5] = 0.0
    split = split_network(network)
    accumulate_gradients(split, digits, 64, images=8, seed=0)
    (group,) = (g for g in ChannelGraph(split, "group_taylor").groups if "3.conv" in g.members)
    assert group.scores[5] == 0
    assert (group.scores > 0).sum() == len(group.scores) - 1


@pytest.fixture(scope="module")
def nano(digits, tmp_path_factory):
    return artifact(tmp_path_factory.mktemp("nano"), random_network("yolov8n.yaml", 10), digits.classes)


@pytest.fixture(scope="module")
def pruned(nano, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "pruned"
    return prune(nano, folder, Target("flops", 0.5)), folder


def test_the_artifact_tells_what_was_done(pruned, nano):
    result, folder = pruned
    card, parent = read_card(folder), read_card(nano)
    assert card == result.card
    assert (card.name, card.architecture, card.format) == ("tiny-pruned", "yolov8n-pruned.yaml", "pytorch")
    assert (card.classes, card.imgsz) == (parent.classes, parent.imgsz)
    assert card.lineage == {
        "seed": "0",
        "parent": parent.digest,
        "importance": "group_l2",
        "keep_flops": "0.5",
        "kept_flops": f"{result.flops:.4f}",
        "kept_parameters": f"{result.parameters:.4f}",
    }
    assert result.flops == pytest.approx(0.5, rel=0.02)
    assert card.gflops / parent.gflops == pytest.approx(0.5, rel=0.03)
    assert card.parameters / parent.parameters == pytest.approx(result.parameters)


def test_the_head_and_the_weights_that_stay_are_kept(pruned, nano):
    original, narrow = (load_network(folder / "model.pt").model for folder in (nano, pruned[1]))
    assert (narrow[-1].nc, narrow[-1].reg_max) == (10, 16)
    assert torch.equal(narrow[-1].stride, original[-1].stride)
    for before, after in zip(original[-1].cv2, narrow[-1].cv2, strict=True):
        assert torch.equal(after[-1].weight, before[-1].weight)
    filters = {tuple(weights.flatten().tolist()) for weights in original[0].conv.weight}
    assert {tuple(weights.flatten().tolist()) for weights in narrow[0].conv.weight} <= filters
    assert all(layer.out_channels % 8 == 0 for layer in architecture.convolutions(narrow[:-1]).values())


@pytest.mark.parametrize(
    ("source", "target"), [(PICO, Target("flops", 0.5)), ("yolov8n.yaml", Target("parameters", 0.33))]
)
def test_targets_are_reached(source, target, digits, tmp_path):
    folder = artifact(tmp_path, random_network(source, 10), digits.classes)
    result = prune(folder, tmp_path / "pruned", target, importance="bn_scale")
    assert {"flops": result.flops, "parameters": result.parameters}[target.measure] == pytest.approx(
        target.kept, rel=0.02
    )


def test_a_checkpoint_whose_class_branch_is_wider_than_its_yaml_says_is_brought_to_it(digits, tmp_path):
    # Ultralytics carries the branch of 80 classes over when it is trained on fewer.
    network = DetectionModel("yolov8n.yaml", nc=10, verbose=False)
    network.load(random_network("yolov8n.yaml", 80))
    assert network.model[-1].cv3[0][0].conv.out_channels == 80
    folder = artifact(tmp_path, network.eval(), digits.classes)
    result = prune(folder, tmp_path / "pruned", Target("flops", 0.6))
    assert result.flops == pytest.approx(0.6, rel=0.02)
    head = load_network(tmp_path / "pruned" / "model.pt").model[-1]
    assert head.cv3[0][0].conv.out_channels == head.cv3[0][0].conv.in_channels


def test_plain_ultralytics_opens_trains_validates_and_exports_it(pruned, digits, tmp_path):
    script = f"""{PLAIN}
model = YOLO("model.pt")
assert type(model.model).__module__ == "ultralytics.nn.tasks", type(model.model)
def shapes(path_or_model):
    return {{name: tuple(weight.shape) for name, weight in path_or_model.model.state_dict().items()}}
before = shapes(model)
options = dict(data={str(digits.data_yaml)!r}, imgsz=64, batch=16, device="cpu", workers=0, plots=False)
model.train(epochs=1, optimizer="AdamW", project="runs", name="run", amp=False, **options)
assert shapes(YOLO(model.trainer.last)) == before
model = YOLO("model.pt")
print("mAP", model.val(**options).box.map)
model.export(format="onnx", imgsz=64, simplify=False, device="cpu")
assert not [name for name in sys.modules if name.startswith(("torch_pruning", "yolo_distill"))]
"""
    (tmp_path / "model.pt").write_bytes((pruned[1] / "model.pt").read_bytes())
    environment = {"PATH": "/usr/bin:/bin", "YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "true"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mAP 0." in done.stdout
    exported = onnx.load(tmp_path / "model.onnx")
    # The batch norms are fused into their convolutions.
    assert "BatchNormalization" not in {node.op_type for node in exported.graph.node}
    widths = [tensor.dims[0] for tensor in exported.graph.initializer if tensor.name == "model.0.conv.weight"]
    assert widths == [load_network(pruned[1] / "model.pt").model[0].conv.out_channels]


def test_the_student_recovers_from_a_teacher_in_its_new_widths(pruned, digits, teacher_dir, tmp_path):
    settings = train_settings(epochs=1, imgsz=96, batch=16)
    recipe = load_recipe("default")
    result = distill(
        digits,
        "yolov8n.yaml",
        settings,
        tmp_path / "student",
        name="recovered",
        recipe=recipe,
        teacher=choose_teacher(recipe, None, teacher_dir),
        initial=pruned[1],
    )
    assert result.card.parameters == pruned[0].card.parameters
    assert result.card.architecture == "yolov8n-pruned.yaml"
    assert result.card.lineage["pretrained"] == pruned[0].card.digest
    before, after = (load_network(folder / "model.pt") for folder in (pruned[1], tmp_path / "student"))
    assert architecture.stated_widths(after) == architecture.stated_widths(before)


def test_a_student_cannot_start_from_a_converted_model(nano, digits, tmp_path):
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "model.pt").write_bytes((nano / "model.pt").read_bytes())
    write_card(folder, read_card(nano).model_copy(update={"format": "onnx"}))
    with pytest.raises(InputError, match="is in onnx format"):
        distill(digits, "", train_settings(epochs=1, imgsz=64, batch=16), tmp_path / "out", name="x", initial=folder)


@pytest.mark.parametrize(
    ("flops", "parameters", "problem"),
    [
        (0.5, 0.5, "both are given"),
        (0.0, 0.0, "none is given"),
        (1.0, 0.0, "keep_flops=1.0: is not between 0 and 1"),
        (0.0, -0.2, "keep_parameters=-0.2: is not between 0 and 1"),
        (float("nan"), 0.0, "is not between 0 and 1"),
    ],
)
def test_targets_that_make_no_sense(flops, parameters, problem):
    with pytest.raises(InputError, match=problem):
        pruning_target(flops, parameters)


def test_one_target_is_enough():
    assert pruning_target(0.4, 0.0) == Target("flops", 0.4)
    assert pruning_target(0.0, 0.3) == Target("parameters", 0.3)


def test_a_target_out_of_reach_leaves_nothing_behind(nano, tmp_path):
    with pytest.raises(InputError, match=r"keep_flops=0.05: cannot be reached: the closest is 0\.\d+ with max_ratio"):
        prune(nano, tmp_path / "pruned", Target("flops", 0.05))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"importance": "magic"}, "is not known. Choose one of group_l2, bn_scale, group_taylor"),
        ({"max_ratio": 1.0}, "max_ratio=1.0: is not between 0 and 1"),
        ({"importance": "group_taylor"}, "needs training images"),
    ],
)
def test_options_that_cannot_be(options, problem, nano, tmp_path):
    with pytest.raises(InputError, match=problem):
        prune(nano, tmp_path / "pruned", Target("flops", 0.5), **options)


@pytest.mark.parametrize("changes", [{"format": "openvino"}, {"precision": "int8"}, {"format": "onnx"}])
def test_only_pytorch_models_are_pruned(changes, nano, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.pt").write_bytes((nano / "model.pt").read_bytes())
    write_card(folder, read_card(nano).model_copy(update=changes))
    with pytest.raises(InputError, match="Give an fp32 PyTorch model artifact"):
        prune(folder, tmp_path / "pruned", Target("flops", 0.5))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("yolo11n.yaml", "has layers that cannot be pruned: C2PSA, C3k2"),
        ("yolo26n.yaml", "an end-to-end head"),
        ("yolov10n.yaml", "ends in v10Detect, not in YOLOv8's Detect"),
    ],
)
def test_other_networks_are_refused(source, problem):
    with pytest.raises(InputError, match=problem):
        architecture.require_prunable(source, DetectionModel(source, nc=2, verbose=False))


def test_fused_networks_are_refused():
    with pytest.raises(InputError, match="batch norms fused"):
        architecture.require_prunable("fused", random_network(PICO, 2).fuse(verbose=False))


def test_a_class_branch_that_is_narrower_than_its_yaml_says_is_refused():
    network = DetectionModel("yolov8n.yaml", nc=80, verbose=False)
    network.load(random_network("yolov8n.yaml", 3))
    assert network.model[-1].cv3[0][0].conv.out_channels == 64
    with pytest.raises(InputError, match=r"is narrower than its model YAML says, in 22\.cv3\.0\.0\.conv and 5 more"):
        architecture.require_prunable("checkpoint", network)


def test_every_importance_yields_a_score_for_every_width(digits):
    network = random_network(PICO, 10)
    widths = architecture.stated_widths(network)
    for importance in IMPORTANCES:
        split = split_network(network)
        accumulate_gradients(split, digits, 64, images=4, seed=0)
        scores = place_scores(ChannelGraph(split, importance))
        assert {place: len(values) for place, values in scores.items()} == widths
        assert all(torch.isfinite(values).all() for values in scores.values())


def test_a_real_network_loses_half_of_its_cost(coco_weights, tmp_path):
    write_checkpoint_artifact(
        tmp_path / "coco", coco_weights, name="coco", imgsz=320, architecture="yolov8n.yaml", lineage={}
    )
    result = prune(tmp_path / "coco", tmp_path / "pruned", Target("flops", 0.5))
    assert result.flops == pytest.approx(0.5, rel=0.02)
    assert load_network(tmp_path / "pruned" / "model.pt").model[-1].nc == 80
