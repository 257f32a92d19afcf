"""`saccade bench`: from the arguments of the command line to a result."""

from argparse import Namespace
from typing import Any

from saccade.bench.models import PATHS, bench_model
from saccade.bench.ops import bench_ops
from saccade.bench.result import Result
from saccade.bench.scale import bench_scale
from saccade.bench.settings import Settings
from saccade.train.recipe import override


def benchmark(a: Namespace) -> Result:
    """Run what the arguments ask for.

    Raises:
        ValueError: for arguments that do not go together.
    """
    settings = Settings(
        device=a.device, precision=a.precision, n=a.n, graph=a.graph, products=a.products
    )
    if a.what == "ops":
        given = [f for f in ("batch", "paths", "scale", "profile", "products") if getattr(a, f)]
        if given or a.overrides:
            raise ValueError(f"bench ops takes no {', '.join(given or a.overrides)}; it has --size")
        return bench_ops(a.name or "*", size=a.size or "small", settings=settings)
    if a.what == "train" and a.products:
        raise ValueError("got --products with bench train; a fused model only infers")
    if a.name is None or a.size is not None:
        raise ValueError(f"bench {a.what} takes the name of a model and options such as T=4")
    words: dict[str, Any] = {
        "batch": 32 if a.batch is None else a.batch,
        "paths": list(PATHS) if a.paths is None else a.paths.split(","),
        "settings": settings,
    }
    options: dict[str, Any] = {}
    for word in a.overrides:
        override(options, word)
    if a.scale is None:
        return bench_model(a.what, a.name, options, profile=a.profile, **words)
    axis, values = _scale(a.scale)
    return bench_scale(a.what, a.name, options, axis=axis, values=values, **words)


def _scale(text: str) -> tuple[str, list[int]]:
    axis, _, values = text.partition("=")
    try:
        return axis, [int(v) for v in values.split(",")]
    except ValueError:
        raise ValueError(f"got --scale {text}, expected a list like T=1,2,4,8") from None
