"""Models in, models out."""

from saccade.transform.fuse import fuse as fuse
