"""LearnFlow's two YAML files: what each node of its graph asks for, and which providers they name.

Must never build a provider or import LangChain.
The model factory reads them here, unless LearnFlow hands over what it has read itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from ..errors import NotConfigured
from ..settings_sources import places

GRAPH: Final = "configs/graph.yaml"
PROVIDERS: Final = "configs/providers.yaml"
_M = TypeVar("_M", bound=BaseModel)


class Node(BaseModel):
    """How a node asks; the fields and defaults of LearnFlow's ``ModelConfig``. ``max_tokens`` is a ceiling."""

    provider: str = "openai"
    model_name: str
    temperature: float = 0.1
    max_tokens: int = Field(4000, gt=0)
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    requires_structured_output: bool = False


class NamedProvider(BaseModel):
    """Where a provider is; the fields of LearnFlow's ``ProviderConfig``. Its repr shows no key."""

    name: str
    base_url: str | None = None
    api_key: str | None = Field(None, repr=False)
    supports_structured_output: bool = False
    default_model: str | None = None


class _Models(BaseModel):
    default: Node
    nodes: dict[str, Node] = {}


class Graph(BaseModel):
    """``graph.yaml``."""

    models: _Models


class _Named(BaseModel):
    providers: dict[str, NamedProvider] = {}


class Plan(Protocol):
    """Who knows the nodes: LearnFlow's ``GraphConfigManager``, or ``Files``."""

    def get_model_config(self, node_name: str) -> Any:
        """How this node asks; the default's way where it has none of its own."""
        ...

    def get_full_config(self) -> Any:
        """All nodes, as ``.models.nodes``."""
        ...

    def get_providers_config(self) -> Mapping[str, Any]:
        """The providers by their names."""
        ...


class Files:
    """The two files, read once.

    Raises:
        NotConfigured: a file is missing, is no YAML, or lacks a field.
    """

    def __init__(self, graph: str = GRAPH, providers: str = PROVIDERS) -> None:
        self._graph = _read(Graph, graph)
        self._named = _read(_Named, providers) if Path(providers).exists() else _Named()

    def get_model_config(self, node_name: str) -> Node:
        """How this node asks; the default's way where it has none of its own."""
        return self._graph.models.nodes.get(node_name, self._graph.models.default)

    def get_full_config(self) -> Graph:
        """All nodes, as ``.models.nodes``."""
        return self._graph

    def get_providers_config(self) -> Mapping[str, NamedProvider]:
        """The providers by their names."""
        return self._named.providers


def _read(kind: type[_M], file: str) -> _M:
    """The file, its ``{{ env.NAME }}`` filled in as LearnFlow does it."""
    from jinja2 import Template, TemplateError  # noqa: PLC0415  # of the extra

    try:
        text = Path(file).read_text(encoding="utf-8")
        return kind.model_validate(yaml.safe_load(Template(text).render(env=_environment())))
    except OSError as error:
        what = f"{file} cannot be read ({type(error).__name__})"
    except (yaml.YAMLError, TemplateError, UnicodeError) as error:
        what = f"{file} is no YAML ({type(error).__name__})"
    except ValidationError as error:  # its text would show values, keys among them
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False)]
        what = f"{file}: {'; '.join(faults)}"
    raise NotConfigured(what, hint="Correct the file, or start in the folder that holds configs/")


def _environment() -> dict[str, str]:
    """Return every variable that is not empty; the process's environment wins."""
    return {name: value for here in reversed(list(places().values())) for name, value in here.items() if value}
