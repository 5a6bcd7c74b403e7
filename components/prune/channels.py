"""Which channels of a network hang together, what they are worth, and how the least of them are removed.

Torch-Pruning's dependency graph (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv:2301.12900) finds
every weight that goes with a channel: a filter, its batch norm, and what later layers read from it through
concatenations and shortcuts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
import torch_pruning as tp
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.prune.architecture import Place, convolutions
from yolo_distill.components.prune.split import SplitC2f

# How channels can be valued, by name.
IMPORTANCES: dict[str, type[tp.importance.Importance]] = {
    "group_l2": tp.importance.GroupMagnitudeImportance,
    "bn_scale": tp.importance.BNScaleImportance,
    "group_taylor": tp.importance.GroupTaylorImportance,
}


@dataclass(frozen=True)
class ChannelGroup:
    """Output channels of convolutions that can only leave together.

    Attributes:
        root: The first convolution.
        members: Names of all of them in ``network.model``.
        scores: What each channel is worth, relative to the group's mean.
    """

    root: nn.Conv2d
    members: frozenset[str]
    scores: torch.Tensor


class ChannelGraph:
    """The channels of a split network.

    Attributes:
        network: The network, which :meth:`shrink` changes.
        groups: Its channels, of the convolutions that may lose some.
    """

    def __init__(self, network: DetectionModel, importance: str) -> None:
        """Trace a network.

        Args:
            network: A network of :func:`~yolo_distill.components.prune.split.split_network`; its gradients must be
                there for ``group_taylor``.
            importance: How channels are valued, one of :data:`IMPORTANCES`.
        """
        self.network = network
        self._graph = tp.DependencyGraph().build_dependency(
            network,
            torch.zeros(1, network.yaml["channels"], 64, 64),
            # Decoded boxes have no part in the channels.
            output_transform=lambda output: [output[1]["boxes"], output[1]["scores"]],
            verbose=False,
        )
        self._names: dict[nn.Module, str] = {layer: name for name, layer in convolutions(network.model).items()}
        self.groups = list(self._trace(IMPORTANCES[importance]()))

    def shrink(self, widths: Mapping[str, int]) -> None:
        """Remove the channels that are worth the least.

        Args:
            widths: Output channels to keep by the convolution's name in ``network.model``.
        """
        for group in self.groups:
            (kept,) = {widths[name] for name in group.members}
            lowest = group.scores.argsort(stable=True)[: len(group.scores) - kept].tolist()
            if lowest:
                self._graph.get_pruning_group(group.root, tp.prune_conv_out_channels, lowest).prune()

    def _trace(self, estimate: tp.importance.Importance) -> Iterator[ChannelGroup]:
        traced: set[str] = set()
        outputs = {self._names[branch[-1]] for branch in _branches(self.network)}
        for name, root in convolutions(self.network.model).items():
            if name in traced | outputs:
                continue
            coupled = self._graph.get_pruning_group(root, tp.prune_conv_out_channels, list(range(root.out_channels)))
            members = frozenset(
                self._names[item.dep.layer] for item in coupled if item.dep.pruning_fn == tp.prune_conv_out_channels
            )
            traced |= members
            yield ChannelGroup(root, members, estimate(coupled))


def place_of(network: DetectionModel, convolution: str) -> Place | None:
    """Return the width of the model YAML that sets a convolution's output channels.

    Args:
        network: A split network.
        convolution: The convolution's name in ``network.model``.

    Returns:
        The place, or ``None`` where the width follows from others: inside SPPF and the head.
    """
    index, _, inner = convolution.partition(".")
    if inner in {"conv", "cv2.conv"}:
        return Place(int(index), "output")
    return Place(int(index), "hidden") if isinstance(network.model[int(index)], SplitC2f) else None


def place_scores(graph: ChannelGraph) -> dict[Place, torch.Tensor]:
    """Return what the best, the second best, ... channel is worth at each place.

    Where several groups share a width, such as the bottlenecks of a C2f, it is the mean over them.
    """
    scores: dict[Place, list[torch.Tensor]] = {}
    for group in graph.groups:
        places = {place_of(graph.network, name) for name in group.members}
        for place in places:
            if place is not None:
                scores.setdefault(place, []).append(group.scores.sort(descending=True).values)
    return {place: torch.stack(group).mean(0) for place, group in scores.items()}


def kept_widths(network: DetectionModel, stock: nn.Sequential) -> dict[str, int]:
    """Return how many output channels each convolution of a split network has in a narrower stock one.

    Args:
        network: The split network.
        stock: The layers of the narrower one, in stock form.
    """
    widths = {name: layer.out_channels for name, layer in convolutions(stock).items()}
    for index, layer in enumerate(network.model):
        if isinstance(layer, SplitC2f):
            half = widths[f"{index}.cv1.conv"] // 2
            widths |= {f"{index}.cv0.conv": half, f"{index}.cv1.conv": half}
    return widths


def _branches(network: DetectionModel) -> list[nn.Sequential]:
    head = network.model[-1]
    return [*head.cv2, *head.cv3]
