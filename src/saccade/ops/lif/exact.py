"""Whether float32 holds the counts of spikes and the membranes that they charge."""

import math

from saccade.ops.lif.reference import Fire

MANTISSA = 24
"""Bits of float32: what counts and membranes have to fit in to be those of float64."""


def inexact(
    steps: int, most: int, scale: float, decay: float, gain: float, fire: Fire
) -> str | None:
    """Why spikes may differ from those in float64, or None where they cannot; see `bits_needed`."""
    if (bits := bits_needed(steps, most, scale, decay, gain, fire)) <= MANTISSA:
        return None
    return (
        f"T={steps} steps of counts up to {most} take {bits} bits to be exact, and float32 has "
        f"{MANTISSA}"
    )


def bits_needed(steps: int, most: int, scale: float, decay: float, gain: float, fire: Fire) -> int:
    """Bits within which counts and membranes are exact where the constants are sums of few halves.

    A step adds as many bits behind the point as the decay has to those of whatever enters a
    membrane: currents, rest, leak towards it, reset. Before the point a hard reset leaves those
    of its largest constant alone: rounding what lies above the threshold changes no spike.

    Args:
        steps: T.
        most: the largest count, N d.
        scale, decay, gain, fire: as for `saccade.attention.ssa`.
    """
    after = fire.v_threshold if fire.v_reset is None else fire.v_reset
    entering = max(map(_behind, (scale * gain, fire.rest, (1 - decay) * fire.rest, after)))
    behind = entering + (steps - 1) * _behind(decay)
    if behind > MANTISSA and max(entering, _behind(decay)) > MANTISSA // 2:
        behind = 0  # constants such as 1 / 3 round in every type: no bound is claimed
    highest = fire.v_threshold if fire.v_reset is not None else most * abs(scale * gain) * steps
    largest = max(highest, abs(fire.rest), abs(after))
    return max(most.bit_length(), behind + max(0, math.frexp(largest)[1]))


def _behind(x: float) -> int:
    """Bits behind the binary point."""
    return x.as_integer_ratio()[1].bit_length() - 1
