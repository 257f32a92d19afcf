"""Labels, by the logits of every step."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from saccade.train.tasks._base import TASK, Batch, Task, check_share, count_correct


@TASK.add("tet")
class TET(Task):
    """Cross-entropy of each step's own logits, and a pull of all logits to one value.

    L = (1 - lambda) 1/T sum_t CE(O_t, y) + lambda 1/T sum_t MSE(O_t, phi).

    Source: Deng et al., "Temporal efficient training", ICLR 2022, arXiv:2202.11946; phi and the
    default of lambda as in the official code.

    Args:
        weight: lambda, the share of the pull.
        level: phi, what logits are pulled to; the paper takes the neuron's threshold.
        label_smoothing: as in "classify".
    """

    def __init__(
        self, *, weight: float = 1e-3, level: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        check_share("label_smoothing", label_smoothing)
        if not 0 <= weight <= 1:
            raise ValueError(f"got weight={weight}, expected a share from 0 to 1")
        self.weight, self.level, self.label_smoothing = weight, float(level), label_smoothing

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Keys "loss" and "correct" (of the logits averaged over the steps)."""
        steps = batch.show(model, per_step=True)  # [T B K]
        target = batch.target.expand(len(steps), *batch.target.shape)
        each = cross_entropy(
            steps.flatten(0, 1), target.flatten(0, 1), label_smoothing=self.label_smoothing
        )
        pull = mse_loss(steps, torch.full_like(steps, self.level))
        loss = (1 - self.weight) * each + self.weight * pull
        return {"loss": loss, "correct": count_correct(steps.mean(0), batch)}
