"""Constants of a neuron as operators and kernels take them: plain numbers, one by one."""

from math import frexp

from saccade.ops.lif.reference import Fire


def constants(decay: float, gain: float, fire: Fire) -> dict[str, float | bool | None]:
    """Keyword arguments that the kernels share; see `saccade.kernels.neuron.charged`."""
    return {
        "decay": decay,
        "gain": gain,
        "pull": (1 - decay) * fire.rest or None,
        "theta": fire.v_threshold,
        "reset": fire.v_reset or 0.0,
        "alpha": fire.sharpness,
        "HARD": fire.v_reset is not None,
        "STRICT": fire.strict,
        "POWERS": all(frexp(x)[0] == 0.5 for x in (decay, gain)),
    }


def scalars(fire: Fire) -> tuple[float, float | None, float, bool, bool, str, float]:
    """Constants of firing as the arguments of an operator."""
    return (
        fire.v_threshold,
        fire.v_reset,
        fire.rest,
        fire.strict,
        fire.detach_reset,
        fire.surrogate,
        fire.sharpness,
    )


def fire_of(
    v_threshold: float,
    v_reset: float | None,
    v_rest: float,
    strict: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
) -> Fire:
    """The inverse of `scalars`."""
    return Fire(
        v_threshold=v_threshold,
        v_reset=v_reset,
        v_rest=v_rest,
        strict=strict,
        detach_reset=detach_reset,
        surrogate=surrogate,
        alpha=alpha,
    )
