"""A drop-in replacement for ``models/model_factory.py`` of LearnFlow, a LangGraph application.

LearnFlow imports this module instead of its own, and passes its ``config_manager``. This module does not import
LearnFlow or read its files. It requires the extra ``[langchain]``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Protocol

from .. import settings
from ..base import AtMost, DefaultFloat, LLMProvider
from ..errors import NotConfigured, Unsupported
from ..factory import get_provider, is_configured
from ..providers import build
from ..providers.registry import CUSTOM
from ..routing.router import RouterProvider
from .langchain import ChatLearnFlow
from .public_messages import public_message

# Parameters of a node in graph.yaml
_SAMPLING: Final = ("temperature", "top_p", "frequency_penalty", "presence_penalty")


class ConfigManager(Protocol):
    """The interface of LearnFlow's ``GraphConfigManager``, which reads ``graph.yaml`` and ``providers.yaml``."""

    def get_model_config(self, node_name: str) -> Any:
        """Return the ``ModelConfig`` of a node, or the default one if the node has none."""
        ...

    def get_full_config(self) -> Any:
        """Return the configuration with all nodes in ``.models.nodes``."""
        ...

    def get_providers_config(self) -> Mapping[str, Any]:
        """Return the ``ProviderConfig`` of all providers by name."""
        ...


class ModelFactory:
    """Creates the chat models for LearnFlow's graph nodes.

    If ``LLM_PROVIDERS`` or ``LLM_PROVIDER`` is set, all nodes use these providers and their default models
    (``<NAME>_VISION_MODEL`` for images). Otherwise, a node uses its provider and model in ``graph.yaml``.
    ``LLM_MODEL_<NODE>`` overrides the model of a node. The other parameters come from ``graph.yaml``.

    For the arguments, see ``initialize_model_factory``.

    Raises:
        NotConfigured: the environment names an unknown provider.
    """

    def __init__(self, config_manager: ConfigManager, api_key: str | None = None) -> None:
        self._config_manager = config_manager
        self._api_key = api_key
        self._environment_router = get_provider() if is_configured() else None
        self._routers: dict[str, RouterProvider] = {}

    @property
    def providers(self) -> list[LLMProvider]:
        """Return the providers in ``LLM_PROVIDERS`` or ``LLM_PROVIDER``, else those of the created models."""
        routers = [self._environment_router] if self._environment_router else self._routers.values()
        return [provider for router in routers for provider in router.providers]

    def create_model(self, config: Any, node: str | None = None) -> ChatLearnFlow:
        """Create the model of a node.

        The model lowers ``max_tokens`` if a request would exceed the context length, and logs the change. It omits
        other parameters that it does not support, because ``graph.yaml`` was possibly written for another model.

        Args:
            config: the ``ModelConfig`` of the node.
            node: the name of the node; None to find it by ``config``. LearnFlow's security guard passes only
                ``config``.

        Raises:
            NotConfigured: the node's provider is not in ``providers.yaml``, or has no address or key.
            Unsupported: the node requires structured output, and no provider supports it.
        """
        node = node or self._node_of(config)
        provider = self._environment_router or self._configured_router(config, node)
        model = None if self._environment_router else config.model_name
        if config.requires_structured_output and provider.get_capabilities()["json_schema"] is False:
            raise Unsupported(
                f"{node} requires structured output, and no provider of {provider.name} supports it",
                hint="Name another provider or model, or set <NAME>_CAPABILITIES=json_schema if it does support it",
            )
        return ChatLearnFlow(
            provider=provider,
            model=settings.node_models().get(f"{settings.NODE_PREFIX}{node.upper()}", model),
            max_tokens=AtMost(config.max_tokens),
            # A DefaultFloat is omitted if the model does not support it.
            **{name: DefaultFloat(value) for name in _SAMPLING if (value := getattr(config, name)) is not None},
        )

    def create_model_for_node(self, node_name: str) -> ChatLearnFlow:
        """Create the model of a node. Use the default configuration if the node has none.

        Raises:
            NotConfigured, Unsupported: see ``create_model``.
        """
        return self.create_model(self._config_manager.get_model_config(node_name), node_name)

    def _node_of(self, config: Any) -> str:
        nodes = self._config_manager.get_full_config().models.nodes
        return next((name for name, node_config in nodes.items() if node_config is config), "default")

    def _configured_router(self, config: Any, node: str) -> RouterProvider:
        """Return a router for the node's provider in ``graph.yaml``. Nodes with the same provider share the router."""
        name = config.provider
        if name not in self._routers:
            self._routers[name] = RouterProvider(self._build(name, node))
        provider = self._config_manager.get_providers_config().get(name)
        if config.requires_structured_output and provider and not provider.supports_structured_output:
            raise Unsupported(
                f"{node} requires structured output, and {name!r} in configs/providers.yaml does not support it",
                hint="Name another provider in configs/graph.yaml, or set supports_structured_output: true",
            )
        return self._routers[name]

    def _build(self, name: str, node: str) -> LLMProvider:
        providers = self._config_manager.get_providers_config()
        if not providers and name == "openai":
            return build(name, api_key=self._api_key)
        if name not in providers:
            raise NotConfigured(
                f"{node} requires provider {name!r}, which is not in configs/providers.yaml",
                hint=f"Name one of {', '.join(providers) or 'openai'} in configs/graph.yaml, or set LLM_PROVIDER",
            )
        config = providers[name]
        arguments = (config.base_url or None, config.default_model or None, config.api_key or None)
        try:
            # CUSTOM is the default, because the providers in providers.yaml are OpenAI-compatible.
            return build(config.name, *arguments, default_kind=CUSTOM.name)
        except NotConfigured as error:
            error.hint = f"{error.hint}. Or set its base_url in configs/providers.yaml"
            raise


def initialize_model_factory(api_key: str | None, config_manager: ConfigManager) -> ModelFactory:
    """Create the model factory, and check the model of every node.

    This function also raises if the model of LearnFlow's security guard is invalid. LearnFlow's function only logs a
    warning in this case.

    Args:
        api_key: OpenAI's API key. It is used if ``providers.yaml`` is empty.
        config_manager: the result of LearnFlow's ``initialize_config_manager()``.

    Raises:
        NotConfigured: a variable is invalid, or a node's provider is unknown.
        Unsupported: a node requires structured output, and its provider does not support it.
    """
    global _factory  # noqa: PLW0603  # LearnFlow's module has the same global
    factory = ModelFactory(config_manager, api_key)
    for node in config_manager.get_full_config().models.nodes:
        factory.create_model_for_node(node)
    _factory = factory
    return factory


def get_model_factory() -> ModelFactory:
    """Return the factory. Raise NotConfigured if ``initialize_model_factory()`` was not called."""
    if _factory is None:
        raise NotConfigured("there is no model factory yet", hint="Call initialize_model_factory() first")
    return _factory


def create_model_for_node(node_name: str) -> ChatLearnFlow:
    """Create the model of a node. See ``ModelFactory``."""
    return get_model_factory().create_model_for_node(node_name)


async def health() -> dict[str, bool]:
    """Check which providers are ready, for LearnFlow's ``/health``. Return the results by the provider's name.

    The check loads no model. Raise NotConfigured if ``initialize_model_factory()`` was not called.
    """
    providers = {provider.name: provider for provider in get_model_factory().providers}
    results = await asyncio.gather(*(provider.health_check() for provider in providers.values()))
    return dict(zip(providers, results, strict=True))


__all__ = [
    "ModelFactory",
    "create_model_for_node",
    "get_model_factory",
    "health",
    "initialize_model_factory",
    "public_message",
]
_factory: ModelFactory | None = None
