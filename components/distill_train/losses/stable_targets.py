"""Targets that are steadied over the views of an object, by a moving average of what the teacher said about it.

After Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, and Laine and Aila, "Temporal
Ensembling for Semi-Supervised Learning", ICLR 2017, whose average is over the epochs' predictions for an image; here it
is over the views of a labelled object, whose class does not depend on the view.
"""

import torch
from torch import nn

from yolo_distill.components.distill_train.losses.regions import best_labels

_SMALLEST = 1e-4


class StableTargets(nn.Module):
    """The moving average of the teacher's class scores for each labelled object of the training set."""

    scores: torch.Tensor
    views: torch.Tensor

    def __init__(self, objects: int, classes: int, momentum: float) -> None:
        """Begin without knowing anything.

        Args:
            objects: Number of labelled objects.
            classes: Number of classes.
            momentum: Share of the earlier views in the average, 0..1.
        """
        super().__init__()
        self.momentum = momentum
        self.register_buffer("scores", torch.zeros(objects, classes))
        self.register_buffer("views", torch.zeros(objects, dtype=torch.int32))

    @torch.no_grad()
    def forward(
        self,
        logits: torch.Tensor,
        boxes: torch.Tensor,
        weight: torch.Tensor,
        image: torch.Tensor,
        label_boxes: torch.Tensor,
        label_image: torch.Tensor,
        objects: torch.Tensor,
    ) -> torch.Tensor:
        r"""Take in the teacher's scores for the objects of a batch and return its logits steadied.

        With :math:`m_o` the weighted mean of :math:`\sigma(t_p)` over the points of object o in this view and
        :math:`a_o` the average that :math:`m_o` has just gone into, the points' scores become
        :math:`\sigma(t_p) + a_o - m_o`: points keep their differences, the object as a whole is steadied. Points of no
        object keep their logits, and so do all points of an object that is seen for the first time.

        Args:
            logits: The teacher's class logits, [P, nc].
            boxes: The teacher's boxes x1, y1, x2, y2, [P, 4].
            weight: Importance of each point, [P], 0 or more.
            image: Index in the batch of each point's image, int64 [P].
            label_boxes: Labelled boxes x1, y1, x2, y2 in the same unit, [G, 4].
            label_image: Index in the batch of their images, int64 [G].
            objects: Numbers of the objects that they are views of, int64 [G].

        Returns:
            Class logits, [P, nc].
        """
        overlap, label = best_labels(boxes, image, label_boxes, label_image)
        inside = overlap >= 0.5
        if not bool(inside.any()):
            return logits
        scores = logits.sigmoid()
        label = label[inside]
        share = weight[inside].clamp(min=_SMALLEST).unsqueeze(1)
        count = len(label_boxes)
        total = scores.new_zeros(count, scores.shape[1]).index_add(0, label, share * scores[inside])
        mean = total / share.new_zeros(count, 1).index_add(0, label, share).clamp(min=_SMALLEST)
        seen = torch.zeros(count, dtype=torch.bool, device=label.device)
        seen[label] = True
        average = torch.where(
            (self.views[objects] == 0).unsqueeze(1),
            mean,
            self.momentum * self.scores[objects] + (1 - self.momentum) * mean,
        )
        self.scores[objects[seen]] = average[seen]
        self.views[objects[seen]] += 1
        steadied = (scores[inside] + (average - mean)[label]).clamp(_SMALLEST, 1 - _SMALLEST)
        result = logits.clone()
        # Logits that nothing moved stay exact, also where the clamp would reach.
        moved = ((average - mean)[label] != 0).any(1)
        places = inside.nonzero().squeeze(1)[moved]
        result[places] = steadied[moved].logit()
        return result
