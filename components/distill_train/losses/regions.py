"""Where to distil the boxes: the main region and the valuable localization region (VLR).

Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022. Their regions come from anchor boxes:
the main region is what the assigner calls positive, and the valuable region holds the anchors whose DIoU with a
labelled box lies in [gamma * alpha, alpha), with alpha the assigner's threshold of overlap. An anchor-free head has no
such boxes and its assigner no such threshold: the teacher's box at the point stands in for the anchor, and alpha is a
constant.
"""

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from ultralytics.utils.metrics import bbox_iou


def localization_regions(
    boxes: torch.Tensor,
    image: torch.Tensor,
    label_boxes: torch.Tensor,
    label_image: torch.Tensor,
    alpha: float = 0.5,
    gamma: float = 0.25,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return the points of the main region and those of the valuable region.

    With :math:`d_p = \max_g DIoU(b_p, g)` over the labelled boxes of the point's image, a point is in the main region
    for :math:`d_p \ge \alpha`, in the valuable region for :math:`\gamma\alpha \le d_p < \alpha`, else in neither. In
    the authors' code a point may be in both, by different boxes; here it is then in the main region alone.

    Args:
        boxes: The teacher's boxes x1, y1, x2, y2 at the points, [P, 4].
        image: Index in the batch of each point's image, int64 [P].
        label_boxes: Labelled boxes x1, y1, x2, y2 in the same unit as the points' boxes, [G, 4].
        label_image: Index in the batch of each labelled box's image, int64 [G].
        alpha: DIoU from which a point is in the main region, 0..1.
        gamma: Part of ``alpha`` from which a point is in the valuable region, 0..1; the paper's is 0.25.

    Returns:
        Two masks, bool [P] each, never both true. Times the points' weight they make the weights of a point loss.
    """
    best, _ = best_labels(boxes, image, label_boxes, label_image, DIoU=True)
    main = best >= alpha
    return main, (best >= gamma * alpha) & ~main


def best_labels(
    boxes: torch.Tensor, image: torch.Tensor, label_boxes: torch.Tensor, label_image: torch.Tensor, **kind: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far each point's box overlaps with the labelled box of its image that it overlaps with most.

    Args:
        boxes: Boxes x1, y1, x2, y2 at the points, [P, 4].
        image: Index in the batch of each point's image, int64 [P].
        label_boxes: Labelled boxes x1, y1, x2, y2 in the same unit, [G, 4].
        label_image: Index in the batch of each labelled box's image, int64 [G].
        **kind: Which overlap, as ``ultralytics.utils.metrics.bbox_iou`` takes it; the IoU by default.

    Returns:
        overlap: [P], -1 in images without labels.
        label: Index of the labelled box, int64 [P]; 0 in images without labels.
    """
    best = boxes.new_full((len(boxes),), -1.0)
    label = torch.zeros_like(image)
    # By image, for the table of all points by all labels would be mostly pairs of different images.
    for number in set(label_image.tolist()):
        points, labels = image == number, (label_image == number).nonzero().squeeze(1)
        table = bbox_iou(boxes[points].unsqueeze(1), label_boxes[labels].unsqueeze(0), xywh=False, **kind)
        overlap, place = table.squeeze(-1).max(1)
        best[points], label[points] = overlap, labels[place]
    return best, label
