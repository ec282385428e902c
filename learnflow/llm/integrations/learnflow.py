"""LearnFlow's ``models/model_factory.py`` on this package: the same names; the nodes' models are our providers.

Must never import LearnFlow or read its files: LearnFlow hands over its own ``config_manager``.
LearnFlow imports this module instead of its own. It needs the extra ``[langchain]``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from .. import settings
from ..base import AtMost, LLMProvider
from ..errors import NotConfigured, Unsupported
from ..factory import get_provider, named
from ..providers import build
from ..providers.registry import CUSTOM
from ..routing.router import RouterProvider
from .langchain import ChatLearnFlow
from .public_messages import public_message


class ConfigManager(Protocol):
    """LearnFlow's ``GraphConfigManager``, which has read ``configs/graph.yaml`` and ``configs/providers.yaml``."""

    def get_model_config(self, node_name: str) -> Any:
        """Return the node's ``ModelConfig``, or the default one."""
        ...

    def get_full_config(self) -> Any:
        """Return all nodes, as ``.models.nodes``."""
        ...

    def get_providers_config(self) -> Mapping[str, Any]:
        """Return each ``ProviderConfig`` by its name."""
        ...


class ModelFactory:
    """Makes the model of each node.

    If ``LLM_PROVIDERS`` or ``LLM_PROVIDER`` is set, that chain answers every node, with each provider's own model (for
    pictures, its ``<NAME>_VISION_MODEL``). Otherwise the provider and model of ``graph.yaml`` answer.
    ``LLM_MODEL_<NODE>`` is a node's model in both cases; temperature and the like are the node's.

    Args:
        config_manager: LearnFlow's.
        api_key: OpenAI's, used if ``providers.yaml`` names no provider.

    Raises:
        NotConfigured: the environment names an unknown provider.
    """

    def __init__(self, config_manager: ConfigManager, api_key: str | None = None) -> None:
        self._config_manager = config_manager
        self._api_key = api_key
        self._chain = get_provider() if named() else None
        self._built: dict[str, RouterProvider] = {}

    @property
    def providers(self) -> list[LLMProvider]:
        """The providers of the chain, or of the models made so far."""
        routers = [self._chain] if self._chain else self._built.values()
        return [provider for router in routers for provider in router.providers]

    def create_model(self, config: Any, node: str | None = None) -> ChatLearnFlow:
        """Return the model for a node's ``ModelConfig``. LearnFlow's guard gives no node: its name is looked up.

        ``max_tokens`` is a ceiling: it is lowered to what the served context leaves, with an event.

        Raises:
            NotConfigured: ``providers.yaml`` does not have the node's provider, or it has no address or key.
            Unsupported: the node requires structured output, and the provider has none.
        """
        node = node or self._node_of(config)
        provider, model = self._chain or self._own(config, node), None if self._chain else config.model_name
        if config.requires_structured_output and provider.get_capabilities()["json_schema"] is False:
            raise Unsupported(
                f"{node} requires structured output, and no provider of {provider.name} supports it",
                hint="Name another provider or model; <NAME>_CAPABILITIES=json_schema if it has it after all",
            )
        return ChatLearnFlow(
            provider=provider,
            model=settings.node_model(node) or model,
            temperature=config.temperature,
            max_tokens=AtMost(config.max_tokens),
            top_p=config.top_p,
            frequency_penalty=config.frequency_penalty,
            presence_penalty=config.presence_penalty,
        )

    def create_model_for_node(self, node_name: str) -> ChatLearnFlow:
        """Return the model of this node, or the default one. Raise as ``create_model`` does."""
        return self.create_model(self._config_manager.get_model_config(node_name), node_name)

    def _node_of(self, config: Any) -> str:
        nodes = self._config_manager.get_full_config().models.nodes
        return next((name for name, known in nodes.items() if known is config), "default")

    def _own(self, config: Any, node: str) -> RouterProvider:
        """Return the provider that ``graph.yaml`` names: one for all nodes that name it."""
        name = config.provider
        if name not in self._built:
            self._built[name] = RouterProvider(self._build(name, node))
        row = self._config_manager.get_providers_config().get(name)
        if config.requires_structured_output and row and not row.supports_structured_output:
            raise Unsupported(
                f"{node} requires structured output, and configs/providers.yaml says that {name!r} has none",
                hint="Name another provider in configs/graph.yaml, or set supports_structured_output: true",
            )
        return self._built[name]

    def _build(self, name: str, node: str) -> LLMProvider:
        rows = self._config_manager.get_providers_config()
        if not rows and name == "openai":
            return build(name, api_key=self._api_key)
        if name not in rows:
            raise NotConfigured(
                f"{node} requires provider {name!r}, which is not in configs/providers.yaml",
                hint=f"Name one of {', '.join(rows) or 'openai'} in configs/graph.yaml, or set LLM_PROVIDER",
            )
        row = rows[name]
        given = (row.base_url or None, row.default_model or None, row.api_key or None)
        try:
            return build(row.name, *given, usual_kind=CUSTOM.name)  # LearnFlow's rows are OpenAI-compatible servers
        except NotConfigured as error:
            error.hint = f"{error.hint}. Or set its base_url in configs/providers.yaml"
            raise


def initialize_model_factory(api_key: str | None, config_manager: ConfigManager) -> ModelFactory:
    """Make the factory that the other functions use, and the model of every node.

    A node without a model is an error now: LearnFlow only warns later, and runs without its guard.

    Args:
        api_key: OpenAI's, used if ``providers.yaml`` names no provider.
        config_manager: what LearnFlow's ``initialize_config_manager()`` returns.

    Raises:
        NotConfigured: a variable is invalid, or a node's provider is unknown.
        Unsupported: a node requires structured output, and its provider has none.
    """
    global _factory  # noqa: PLW0603  # as LearnFlow has it
    factory = ModelFactory(config_manager, api_key)
    for node in config_manager.get_full_config().models.nodes:
        factory.create_model_for_node(node)
    _factory = factory
    return factory


def get_model_factory() -> ModelFactory:
    """Return the factory. Raise NotConfigured before ``initialize_model_factory()``."""
    if _factory is None:
        raise NotConfigured("there is no model factory yet", hint="Call initialize_model_factory() first")
    return _factory


def create_model_for_node(node_name: str) -> ChatLearnFlow:
    """Return the model of this node; see ``ModelFactory``."""
    return get_model_factory().create_model_for_node(node_name)


async def health() -> dict[str, bool]:
    """Return whether each provider of the nodes would answer now, by name: for LearnFlow's ``/health``.

    It loads no model. Raises NotConfigured before ``initialize_model_factory()``.
    """
    providers = {provider.name: provider for provider in get_model_factory().providers}
    ready = await asyncio.gather(*(provider.health_check() for provider in providers.values()))
    return dict(zip(providers, ready, strict=True))


__all__ = [
    "ModelFactory",
    "create_model_for_node",
    "get_model_factory",
    "health",
    "initialize_model_factory",
    "public_message",
]
_factory: ModelFactory | None = None
