"""Learning from a teacher: a trained model of this library that sees the same pictures."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from saccade.models import SpikingModel
from saccade.train.checkpoint import load_model
from saccade.train.tasks._base import TASK, Batch, Task, check_share, count_correct

_LOW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class _Taught(Task):
    """Abstract: owns the teacher."""

    def __init__(self, teacher: str, alpha: float, label_smoothing: float) -> None:
        check_share("label_smoothing", label_smoothing)
        if not 0 <= alpha <= 1:
            raise ValueError(f"got alpha={alpha}, expected a share from 0 to 1")
        if not teacher:
            raise ValueError("got no teacher, expected the folder of a run or a weights file")
        path = Path(teacher).expanduser()
        self.alpha, self.label_smoothing, self.path = alpha, label_smoothing, path
        self.teacher, self.data = load_model(path)
        self.teacher.requires_grad_(False)

    def prepare(self, model: SpikingModel) -> None:
        """Move the teacher beside the student, if it takes the same pictures and classes."""
        asked, found = (
            (m.config.num_classes, m.config.in_channels, m.config.size)
            for m in (model, self.teacher)
        )
        if found != asked:
            raise ValueError(
                f"teacher {self.path} has (classes, channels, size) {found}, expected {asked} as "
                "the student has"
            )
        self.teacher.to(next(model.parameters()).device)

    @torch.no_grad()
    def ask(self, x: Tensor) -> Tensor:
        """The teacher's logits [B K], with its own T and the precision of its training."""
        low = _LOW.get(self.data.get("precision", ""))
        with torch.autocast(x.device.type, dtype=low, enabled=low is not None):
            logits: Tensor = self.teacher(x)
        return logits.float()

    def learn(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The student's logits, its cross-entropy with the labels, and what is logged."""
        logits = batch.show(model)
        plain = cross_entropy(logits, batch.target, label_smoothing=self.label_smoothing)
        return logits, plain, {"correct": count_correct(logits, batch)}


@TASK.add("distill")
class Distill(_Taught):
    """Match a teacher's softened probabilities, beside the labels.

    L = (1 - alpha) CE(z_s, y) + alpha tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau)).

    Source: Hinton et al., arXiv:1503.02531; tau^2 keeps the gradient's size as tau changes.

    Args:
        teacher: folder of a run, or its weights file.
        temperature: tau.
        alpha: share of the teacher.
        label_smoothing: of the labels, as in "classify".
    """

    def __init__(
        self,
        *,
        teacher: str = "",
        temperature: float = 4.0,
        alpha: float = 0.5,
        label_smoothing: float = 0.0,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"got temperature={temperature}, expected a number above 0")
        super().__init__(teacher, alpha, label_smoothing)
        self.temperature = temperature

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Keys "loss" and "correct"."""
        logits, plain, seen = self.learn(model, batch)
        ours, theirs = ((z / self.temperature).log_softmax(-1) for z in (logits, self.ask(batch.x)))
        far = kl_div(ours, theirs, log_target=True, reduction="batchmean")
        loss = (1 - self.alpha) * plain + self.alpha * self.temperature**2 * far
        return {"loss": loss, **seen}


@TASK.add("distill_hard")
class DistillHard(_Taught):
    """Take a teacher's decision for a second label.

    L = (1 - alpha) CE(z_s, y) + alpha CE(z_s, argmax z_t).

    Source: Touvron et al. (DeiT), ICML 2021, arXiv:2012.12877, hard-label distillation, whose
    alpha is 1/2; without its distillation token.

    Args:
        teacher: folder of a run, or its weights file.
        alpha: share of the teacher.
        label_smoothing: of the labels, as in "classify"; the teacher's label is taken as it is.
    """

    def __init__(
        self, *, teacher: str = "", alpha: float = 0.5, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(teacher, alpha, label_smoothing)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Keys "loss" and "correct"."""
        logits, plain, seen = self.learn(model, batch)
        decided = cross_entropy(logits, self.ask(batch.x).argmax(-1))
        return {"loss": (1 - self.alpha) * plain + self.alpha * decided, **seen}
