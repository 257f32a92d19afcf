"""Labelled images, ready to train on: `load_data("cifar10")`.

Every sibling file without a leading underscore is read on import, so that its datasets register.
"""

from importlib import import_module
from pkgutil import iter_modules

from saccade.data._base import DATA as DATA
from saccade.data._base import ImageData as ImageData
from saccade.data._base import Images as Images
from saccade.data._base import Split as Split
from saccade.data._base import data_root as data_root
from saccade.data._base import load_data as load_data
from saccade.data._base import stratified_split as stratified_split
from saccade.data._picture import read_image as read_image
from saccade.data._stream import Stream as Stream
from saccade.data.augment import Augment as Augment
from saccade.data.augment import augment as augment
from saccade.data.augment import normalise as normalise
from saccade.data.augment import unit as unit
from saccade.data.mix import Mix as Mix
from saccade.data.moved import moved as moved

for _file in iter_modules(__path__):
    if not _file.name.startswith("_"):
        import_module(f"{__name__}.{_file.name}")
