"""Every random number of a run is a function of its seed, a purpose and a count.

So there is no random state to save: a run that goes on from step n draws what it would have.
"""

import zlib

import numpy as np
import torch


def seed_for(seed: int, purpose: str, count: int = 0) -> int:
    """A 63-bit seed, apart from that of any other purpose or count."""
    entropy = [seed, zlib.crc32(purpose.encode()), count]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_for(seed: int, purpose: str, count: int = 0) -> torch.Generator:
    """A CPU generator seeded by `seed_for`."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, count))
