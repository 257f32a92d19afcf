"""Every sibling file holds named configurations; importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from saccade.models._base import MODELS as MODELS
from saccade.models._base import ModelEntry as ModelEntry
from saccade.models._base import create_model as create_model
from saccade.models._base import describe as describe
from saccade.models._base import list_models as list_models
from saccade.models._base import rebuild as rebuild
from saccade.models._base import resolve as resolve
from saccade.models._base import sources_of as sources_of
from saccade.models._body import BodyConfig as BodyConfig
from saccade.models._body import SpikingModel as SpikingModel
from saccade.models.cnn import ConvConfig as ConvConfig
from saccade.models.cnn import SpikingCNN as SpikingCNN
from saccade.models.resnet import ResNetConfig as ResNetConfig
from saccade.models.resnet import SpikingResNet as SpikingResNet
from saccade.models.transformer import Block as Block
from saccade.models.transformer import SpikingTransformer as SpikingTransformer
from saccade.models.transformer import TransformerConfig as TransformerConfig

for _file in iter_modules(__path__):
    if not _file.name.startswith("_"):
        import_module(f"{__name__}.{_file.name}")
