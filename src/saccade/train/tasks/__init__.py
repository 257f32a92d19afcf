"""What is learned, one task a file.

Every sibling file without a leading underscore is read on import, so that its tasks register.
"""

from importlib import import_module
from pkgutil import iter_modules

from saccade.train.tasks._base import TASK as TASK
from saccade.train.tasks._base import Batch as Batch
from saccade.train.tasks._base import Task as Task
from saccade.train.tasks._base import make_task as make_task
from saccade.train.tasks._base import predict as predict

for _file in iter_modules(__path__):
    if not _file.name.startswith("_"):
        import_module(f"{__name__}.{_file.name}")
