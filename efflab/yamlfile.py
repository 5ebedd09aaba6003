"""Read a YAML file that people write: an error names the file, the line and the mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from efflab.errors import EfflabError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; YAML's own rule would let the last one win in silence."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    pairs: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in pairs:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} appears twice", problem_mark=key_node.start_mark)
        pairs[key] = loader.construct_object(value_node, deep=True)
    return pairs


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        EfflabError: missing, unreadable, not UTF-8, not YAML, or a key given twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        folder = path.absolute().parent.name
        raise EfflabError(f"{path.name}: cannot be read: there is no such file in {folder}/.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EfflabError(f"{path.name}: cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise EfflabError(f"{path.name}{place}: not valid YAML: {getattr(error, 'problem', error)}.") from None
