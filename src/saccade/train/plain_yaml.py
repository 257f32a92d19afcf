"""YAML without surprises: 1e-3 is a number, a date is text, no key stands twice, no aliases."""

import re
from collections.abc import Hashable
from typing import Any

import yaml  # type: ignore[import-untyped]

_FLOAT = re.compile(
    r"[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?"
    r"|[-+]?\d[\d_]*[eE][-+]?\d+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_REPLACED = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # it may hold itself
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None,
                None,
                f"found alias {event.anchor!r}, which a recipe may not use",
                event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key.value, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"found key {key.value!r} a second time", key.start_mark
                )
            seen |= {key.value} if isinstance(key.value, str) else set()
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        # PyYAML writes these line ends as they are, and reads them back as others
        style = '"' if set("\x85\u2028\u2029\ufeff") & set(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
# the writer must quote exactly the words that the reader takes for something else than text
for _cls in (_Loader, _Dumper):
    _cls.yaml_implicit_resolvers = {
        first: [(tag, word) for tag, word in known if tag not in _REPLACED]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _cls.add_implicit_resolver(
        _REPLACED[0], re.compile(rf"(?:{_FLOAT.pattern})$"), [*"-+.0123456789"]
    )


def read_yaml(text: str) -> Any:
    """Plain values, lists and mappings.

    Raises:
        ValueError: for anything that is not one sound YAML document.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except Exception as error:  # the parser has its own kinds, and Python's behind them
        raise ValueError(f"not valid YAML: {error}") from error


def write_yaml(value: Any) -> str:
    """Text that `read_yaml` reads back to the same value."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
