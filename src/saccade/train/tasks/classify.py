"""Labels, by the logits averaged over the steps."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saccade.train.tasks._base import TASK, Batch, Task, check_share, count_correct


@TASK.add("classify")
class Classify(Task):
    """Cross-entropy of the logits averaged over the steps.

    Args:
        label_smoothing: share of the target spread evenly over the classes.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        check_share("label_smoothing", label_smoothing)
        self.label_smoothing = label_smoothing

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Keys "loss" and "correct" (how many of the batch)."""
        logits = batch.show(model)
        loss = cross_entropy(logits, batch.target, label_smoothing=self.label_smoothing)
        return {"loss": loss, "correct": count_correct(logits, batch)}
