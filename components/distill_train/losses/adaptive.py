"""How strongly to distil each image: by how good the teacher is there, or how far the student is from it.

The measure of the teacher is the alignment of a class score and an overlap by which the task-aligned assigner ranks
points: Feng et al., "TOOD: Task-aligned One-stage Object Detection", ICCV 2021. Both results are factors, not losses:
no gradient passes through them.
"""

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from ultralytics.utils.metrics import box_iou


@torch.no_grad()
def teacher_quality(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    image: torch.Tensor,
    label_boxes: torch.Tensor,
    label_classes: torch.Tensor,
    label_image: torch.Tensor,
    images: int,
) -> torch.Tensor:
    r"""Return each image's mean over labelled boxes g of :math:`\max_p \sigma(t_{p,c_g})^{1/2} IoU(b_p, g)`.

    The power of the score is TOOD's; its sixth power of the overlap is left out, for it ranks points and does not
    measure them.

    Args:
        scores: The teacher's class logits at the points, [P, nc]; a class that is not known (NaN) counts as 0.
        boxes: The teacher's boxes x1, y1, x2, y2 at the points, [P, 4].
        image: Index in the batch of each point's image, int64 [P].
        label_boxes: Labelled boxes x1, y1, x2, y2 in the same unit as the points' boxes, [G, 4].
        label_classes: Their classes, int64 [G].
        label_image: Index in the batch of their images, int64 [G].
        images: Number of images B.

    Returns:
        A factor for each image, [B], 0..1: 1 without labels, where nothing speaks against the teacher, and 0 for an
        image with labels but without points.
    """
    confidence = scores.sigmoid().nan_to_num(0.0).sqrt()
    best = scores.new_zeros(len(label_boxes))
    # By image, for the table of all points by all labels would be mostly pairs of different images.
    for number in set(image.tolist()):
        points, labels = image == number, label_image == number
        overlap = box_iou(boxes[points], label_boxes[labels]).to(scores.dtype)
        alignment = confidence[points][:, label_classes[labels]] * overlap
        best[labels] = alignment.amax(0)
    ones = torch.ones_like(best)
    total, count = (scores.new_zeros(images).index_add(0, label_image, values) for values in (best, ones))
    return torch.where(count > 0, total / count.clamp(min=1), 1.0)


@torch.no_grad()
def disagreement(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, image: torch.Tensor, images: int
) -> torch.Tensor:
    r"""Return each image's :math:`\sum_p w_p \frac{1}{nc} \sum_c |\sigma(t_{pc}) - \sigma(s_{pc})| / \sum_p w_p`.

    The values are divided by their mean, so that the batch is distilled as strongly as without them.

    Args:
        student: Class logits, [P, nc].
        teacher: Class logits at the same points, [P, nc].
        weight: Importance of each point, [P], 0 or more.
        image: Index in the batch of each point's image, int64 [P].
        images: Number of images B.

    Returns:
        A factor for each image, [B], 0 or more, with a mean of 1; 0 for an image without points, and 1 everywhere when
        student and teacher agree.
    """
    distance = (teacher.sigmoid() - student.sigmoid()).abs().mean(1)
    total, count = (weight.new_zeros(images).index_add(0, image, values) for values in (weight * distance, weight))
    by_image = total / count.clamp(min=1e-9)
    mean = by_image.sum() / max(images, 1)
    return torch.where(mean > 0, by_image / torch.where(mean > 0, mean, 1), 1.0)
