"""LearnFlow's ``models/model_factory.py`` in new: the same names, the models of its nodes answered by our providers.

Must never import LearnFlow: what it hands over is known by the attributes that it has.
LearnFlow imports this instead of its own; needs the extra ``[langchain]``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from .. import settings
from ..base import AtMost, LLMProvider
from ..errors import LLMError, NotConfigured, Unsupported
from ..factory import get_provider, named
from ..providers.registry import build
from ..routing.router import RouterProvider
from .langchain import ChatLearnFlow
from .learnflow_nodes import Files, NamedProvider, Plan


class ModelFactory:
    """Makes the model of each node.

    Where ``LLM_PROVIDERS`` or ``LLM_PROVIDER`` names somebody, every node is answered by that chain, with each
    provider's own model (for pictures, its ``<NAME>_VISION_MODEL``). Otherwise by the provider and model that
    ``graph.yaml`` names. ``LLM_MODEL_<NODE>`` is a node's model in both cases; temperature and the like are the node's.

    Args:
        providers_config: LearnFlow's ``ProviderConfig`` by name.
        plan: its ``GraphConfigManager``; the files in ``configs/`` where None.

    Raises:
        NotConfigured: the environment names a provider that cannot be.
    """

    def __init__(self, providers_config: Mapping[str, Any], plan: Plan | None = None) -> None:
        self.providers_config = providers_config
        self._plan = plan
        self._chain = get_provider() if named() else None
        self._built: dict[str, RouterProvider] = {}

    @property
    def plan(self) -> Plan:
        """What each node asks for."""
        if self._plan is None:
            self._plan = Files()
        return self._plan

    @property
    def providers(self) -> list[LLMProvider]:
        """Who answers the nodes: the chain, or whom the models made so far name."""
        return [
            each for router in ([self._chain] if self._chain else self._built.values()) for each in router.providers
        ]

    def create_model(self, config: Any, node: str | None = None) -> ChatLearnFlow:
        """The model for a node's configuration; its name is looked up where it is not given.

        ``max_tokens`` is a ceiling: it is lowered to what the context that is served leaves, with an event.

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
        """The model of this node; the default's configuration where it has none of its own. Raises as above."""
        return self.create_model(self.plan.get_model_config(node_name), node_name)

    def _node_of(self, config: Any) -> str:
        """The name that this configuration stands under: LearnFlow's guard gives none."""
        if self._plan is None:
            return "default"
        nodes = self.plan.get_full_config().models.nodes
        return next((name for name, each in nodes.items() if each is config), "default")

    def _own(self, config: Any, node: str) -> RouterProvider:
        """The provider that ``graph.yaml`` names; one for all nodes that name it."""
        name = config.provider
        row = self.providers_config.get(name)
        if row is None:
            raise NotConfigured(
                f"{node} wants provider {name!r}, which is not in configs/providers.yaml",
                hint=f"Name one of {', '.join(self.providers_config)} in configs/graph.yaml, or set LLM_PROVIDER",
            )
        if config.requires_structured_output and not row.supports_structured_output:
            raise Unsupported(
                f"{node} requires structured output, and configs/providers.yaml says that {name!r} has none",
                hint="Name another provider in configs/graph.yaml, or say supports_structured_output: true",
            )
        if name not in self._built:
            try:
                own = build(row.name, row.base_url or None, row.default_model or None, row.api_key or None)
            except NotConfigured as error:
                error.hint = f"{error.hint}. Or set its base_url in configs/providers.yaml"
                raise
            self._built[name] = RouterProvider(own)
        return self._built[name]


def initialize_model_factory(api_key: str | None = None, config_manager: Plan | None = None) -> ModelFactory:
    """Make the factory that the other functions use, and see that every node has a model.

    Now, because LearnFlow only warns, and goes on without its guard, where the guard's model cannot be made later.

    Args:
        api_key: OpenAI's, for where ``providers.yaml`` names nobody.
        config_manager: LearnFlow's; the files in ``configs/`` where None.

    Raises:
        NotConfigured: a file or a variable that cannot be read, or a node's provider that is none.
        Unsupported: a node requires structured output, and its provider has none.
    """
    global _factory  # noqa: PLW0603  # as LearnFlow has it
    plan = config_manager or Files()
    openai = NamedProvider(name="openai", api_key=api_key, supports_structured_output=True)
    factory = ModelFactory(plan.get_providers_config() or {openai.name: openai}, plan)
    for node in plan.get_full_config().models.nodes:
        factory.create_model_for_node(node)
    _factory = factory
    return factory


def get_model_factory() -> ModelFactory:
    """The factory. Raises NotConfigured before ``initialize_model_factory()``."""
    if _factory is None:
        raise NotConfigured("there is no model factory yet", hint="Call initialize_model_factory() first")
    return _factory


def create_model_for_node(node_name: str) -> ChatLearnFlow:
    """The model of this node; see ``ModelFactory``."""
    return get_model_factory().create_model_for_node(node_name)


def public_message(error: BaseException, language: str = "ru") -> str:
    """What a student may read of an error, LearnFlow's own and other libraries' included: no address, no variable."""
    return (error if isinstance(error, LLMError) else LLMError("")).public_message(language)


async def health() -> dict[str, bool]:
    """Whether each provider that the nodes use would answer now, by name: for LearnFlow's ``/health``.

    Costs nothing and loads no model. Raises NotConfigured before ``initialize_model_factory()``.
    """
    providers = {each.name: each for each in get_model_factory().providers}
    ready = await asyncio.gather(*(each.health_check() for each in providers.values()))
    return dict(zip(providers, ready, strict=True))


_factory: ModelFactory | None = None
