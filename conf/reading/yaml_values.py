"""YAML with the rules of OmegaConf: 1e-3 is a number, a date is text, and duplicate keys are errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from conf.checks import first_line


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the rules of OmegaConf, whose own loader is private."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag == self.DEFAULT_SCALAR_TAG]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise yaml.constructor.ConstructorError(
                "while constructing a mapping",
                node.start_mark,
                f"found duplicate key {min(repeated)}",
                node.start_mark,
            )
        return super().construct_mapping(node, deep=deep)


# PyYAML follows YAML 1.1, where a float with an exponent needs a point and a sign: 1.0e+3.
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}


def read(text: str) -> Any:
    """Parse ``text`` without executing anything or resolving ``${...}``. Raise ``yaml.YAMLError``."""
    return yaml.load(text, Loader=Loader)


def read_as_typed(text: str) -> Any:
    """Parse ``text`` like :func:`read`, but leave numbers, booleans and null as the text that was typed."""
    return yaml.load(text, Loader=yaml.BaseLoader)


def read_file(path: Path, *, as_typed: bool = False) -> Any:
    """Parse the file ``path`` with :func:`read` or :func:`read_as_typed`.

    Raise ``ValueError`` if the file is missing or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return read_as_typed(text) if as_typed else read(text)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): give a run folder of caat or a file of settings"
        ) from error
    # PyYAML also raises built-in errors: for numbers with thousands of digits, or bytes that are not UTF-8.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML ({first_line(error)})") from error
