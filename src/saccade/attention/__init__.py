"""Every sibling file is one mechanism; importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from saccade.attention._base import ATTENTION as ATTENTION
from saccade.attention._base import Site as Site
from saccade.attention._base import SpikingAttention as SpikingAttention
from saccade.attention._base import create_attention as create_attention
from saccade.attention._base import install as install
from saccade.attention._base import list_attention as list_attention
from saccade.attention._contract import check_attention as check_attention

for _file in iter_modules(__path__):
    if not _file.name.startswith("_"):
        import_module(f"{__name__}.{_file.name}")
