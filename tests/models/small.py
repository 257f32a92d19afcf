"""Named models at a size at which a test can run them all."""

from typing import Any

from saccade._registry import split_part
from saccade.attention import ATTENTION
from saccade.models import MODELS, BodyConfig, ConvConfig, ResNetConfig, TransformerConfig


def small(name: str) -> dict[str, Any]:
    """Options that shrink a named model but for its parts; no two axes alike."""
    config = MODELS[name].config
    common: dict[str, Any] = {"num_classes": 5, "image_size": (32, 48), "T": 3}
    if isinstance(config, TransformerConfig):
        return common | {"dim": 32, "depth": 2, "heads": 4}
    if isinstance(config, ConvConfig):
        n = len(config.channels)
        # the published rectangle is so narrow that few of so few neurons would learn
        common["neuron"] = {"name": split_part(config.neuron)[0], "alpha": 0.25}
        common |= {"channels": tuple(range(8, 8 + 2 * n, 2)), "hidden": (12,), "T": 6}
        return common | ({"image_size": (64, 128)} if n > 3 else {})
    if isinstance(config, ResNetConfig):
        n = len(config.widths)
        widths = tuple(range(8, 8 + 4 * n, 4))
        common["neuron"] = {"name": split_part(config.neuron)[0], "alpha": 0.25}
        return common | {"depths": (2, *[1] * (n - 1)), "widths": widths, "image_size": (64, 96)}
    raise AssertionError(f"say how to shrink a {type(config).__name__}")


def fitting(config: BodyConfig) -> list[str]:
    """The mechanisms that a body takes: mixers in transformers, gates elsewhere."""
    kind = "mixer" if isinstance(config, TransformerConfig) else "gate"
    return [name for name in ATTENTION if ATTENTION[name].kind == kind]
