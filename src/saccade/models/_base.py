"""The catalogue of named models."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from saccade._keymap import KeyMap
from saccade._registry import Part, Registry, nearest, split_part
from saccade._sources import Result, Source
from saccade.attention import ATTENTION
from saccade.models._body import BodyConfig, SpikingModel
from saccade.models.transformer import SpikingTransformer
from saccade.nn import STEM

MODELS: Registry["ModelEntry"] = Registry("model")


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A named configuration: what it builds, where it comes from, what its authors report.

    `body` is what the configuration configures. `parts` holds, by the name of a part, options
    that it takes in this model unless a user says otherwise. `keys` translates official
    checkpoints, `implied` finds options in them; `note` says what a user should know before
    citing.
    """

    config: BodyConfig
    source: Source
    about: str
    results: tuple[Result, ...] = ()
    keys: KeyMap | None = None
    implied: Callable[[Mapping[str, Tensor]], dict[str, Any]] | None = None
    note: str = ""
    body: Callable[[Any], SpikingModel] = SpikingTransformer
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern, such as "spik*"."""
    return MODELS.list(pattern)


def resolve(name: str, options: Mapping[str, Any]) -> BodyConfig:
    """The configuration of a named model with some fields replaced.

    A part that names the model's own choice keeps the options that it does not mention.

    Raises:
        ValueError: for an unknown model or field, naming the nearest.
    """
    entry = MODELS[name]
    config = entry.config
    known = [f.name for f in fields(config)]
    changes: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"model {name!r} has no option {option!r}; {nearest(option, known)}")
        if option in config.PARTS:
            value = _merged(getattr(config, option), value, entry.parts)
        changes[option] = value
    return replace(config, **changes)


def _merged(default: Part, part: Part, parts: Mapping[str, Mapping[str, Any]]) -> Part:
    name, options = split_part(default)
    if isinstance(part, Mapping) and "name" not in part:  # options alone are of the model's own
        part = {"name": name, **part}
    wanted, given = split_part(part)
    return {"name": wanted, **(options if wanted == name else parts.get(wanted, {})), **given}


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    T: int | None = None,
    attention: Part | None = None,
    **options: Any,
) -> SpikingModel:
    """Build a model by name; what is not given stays as the named configuration has it.

    Args:
        name: see `list_models()`.
        num_classes: K of the head.
        in_channels: channels of the picture.
        image_size: side, or (H, W), in pixels; any size that the stem divides.
        T: time steps that a static picture is shown for.
        attention: name, or {"name": ..., options}; see `list_attention()`.
        options: further fields of its configuration, such as dim, depth, heads, neuron for a
            transformer, or channels, pools, hidden, neuron for a convolutional net.

    Returns:
        a model whose call takes [B C H W] or [T B C H W] and returns logits [B K].

    Raises:
        ValueError: for an unknown name or option (the nearest is named), or sizes that do not
            fit together.
    """
    given = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "T": T,
        "attention": attention,
    }
    options |= {field: value for field, value in given.items() if value is not None}
    model = MODELS[name].body(resolve(name, options))
    model.name = name
    return model


def sources_of(name: str, config: Any) -> list[Source]:
    """The model's own source, then those of its attention and stem, each once."""
    registries: dict[str, Any] = {"attention": ATTENTION, "stem": STEM}
    parts = [(field, split_part(getattr(config, field))[0]) for field in config.PARTS]
    used = [registries[field][part].source for field, part in parts if field in registries]
    found = {source.key: source for source in (MODELS[name].source, *used)}
    return list(found.values())


def describe(model: SpikingModel) -> dict[str, Any]:
    """Name and whole configuration, as stored beside weights: `rebuild` is the inverse."""
    return {"name": model.name, "config": asdict(model.config)}


def rebuild(description: Mapping[str, Any]) -> SpikingModel:
    """The model that `describe` described, with fresh weights."""
    return create_model(description["name"], **description["config"])
