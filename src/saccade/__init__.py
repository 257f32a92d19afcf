"""Attention for spiking neural networks: exact, measured, and free to combine."""

from importlib.metadata import version
from pathlib import Path

from saccade import transform as transform
from saccade.analysis.explain import explain as explain
from saccade.attention import check_attention as check_attention
from saccade.attention import create_attention as create_attention
from saccade.attention import list_attention as list_attention
from saccade.models import SpikingModel
from saccade.models import create_model as create_model
from saccade.models import list_models as list_models
from saccade.nn.streaming import Streaming

__version__ = version("saccade")


def load(run_or_file: str | Path) -> SpikingModel:
    """A trained model, in evaluation mode.

    Args:
        run_or_file: the folder of a run or of a record with its weights, or a .safetensors file
            that saccade wrote.

    Raises:
        ValueError: for a missing, truncated or foreign file.
    """
    from saccade.train.checkpoint import load_model

    return load_model(Path(run_or_file))[0]


def streaming(model: SpikingModel) -> Streaming:
    """Feed a causal model one step at a time: `streaming(model).step(x_t)` gives logits [B K].

    Args:
        model: in evaluation mode.

    Raises:
        ValueError: where a mechanism of the model needs the future, with the reason.
    """
    return Streaming(model)
