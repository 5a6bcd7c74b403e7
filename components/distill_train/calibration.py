"""Evens out the sizes of the terms' gradients, as measured on the first batches of a training."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn


def gradient_norm(loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> float:
    """Return the norm of a loss's gradient over all parameters; the graph is kept.

    Args:
        loss: A scalar.
        parameters: What the gradient is taken for; those that the loss does not depend on count as 0.
    """
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    found = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(found).norm()) if found else 0.0


class GradientScales(nn.Module):
    """One factor a term, by which its gradient gets the wanted size beside the detection loss's.

    The factor is the median, over the batches seen, of the ratio of the norms, as far as both are above 0; it is fixed
    after the last of them.
    """

    batches_seen: torch.Tensor
    ratios: torch.Tensor

    def __init__(self, terms: Sequence[str], ratio: float, batches: int) -> None:
        """Begin with a factor of 1 for every term.

        Args:
            terms: Their names.
            ratio: Wanted norm of each term's gradient as a part of the detection loss's.
            batches: How many batches are looked at.
        """
        super().__init__()
        self.terms = list(terms)
        self.ratio = ratio
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int32))
        self.register_buffer("ratios", torch.full((batches, len(self.terms)), torch.nan))

    @property
    def finished(self) -> bool:
        """Whether the factors are fixed."""
        return int(self.batches_seen) >= len(self.ratios)

    @torch.no_grad()
    def see(self, detection: float, terms: Mapping[str, float]) -> None:
        """Take in the gradient norms of a batch.

        Args:
            detection: That of the detection loss.
            terms: Those of the terms, by name.
        """
        for place, name in enumerate(self.terms):
            if detection > 0 and terms[name] > 0:
                self.ratios[self.batches_seen, place] = self.ratio * detection / terms[name]
        self.batches_seen += 1

    def factor(self, term: str) -> float:
        """Return the factor of a term."""
        seen = self.ratios[:, self.terms.index(term)]
        known = seen[~seen.isnan()]
        return float(known.median()) if len(known) else 1.0
