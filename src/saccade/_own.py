"""Code of a user's own, imported before a command runs: an attention, a model, a neuron."""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def import_own(name: str) -> None:
    """Import a Python file, or a module that lies in this folder or is installed.

    Raises:
        ValueError: where there is none, or something that it imports is missing.
    """
    path = Path(name)
    try:
        if path.suffix != ".py":
            sys.path.insert(0, str(Path.cwd()))
            import_module(name)
            return
        spec = spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses look for it there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[path.stem]
            raise
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise ValueError(
            f"got --import {name}, expected a Python file, or a module that can be imported "
            f"from here ({error})"
        ) from error
