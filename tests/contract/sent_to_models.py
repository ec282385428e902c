"""Write what is sent to the models of LiteLLM's price map, as groups of models: ``make models``.

The table is in ``sent_to_models.txt``. Its first line names the version of LiteLLM.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from learnflow.llm.adapter import _litellm
from learnflow.llm.adapter.options import checked_keywords
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.adapter.request import RequestFormat, build_request
from learnflow.llm.base import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, Call
from learnflow.llm.errors import CapabilityError, LLMError
from learnflow.llm.providers import build
from learnflow.llm.servers.model_prices import needs_responses, price_map
from learnflow.llm.transport.untrusted import parse_date

TABLE: Final = Path(__file__).with_suffix(".txt")
TODAY: Final = date(2026, 11, 30)
PROVIDERS: Final = ("openai", "azure", "anthropic", "gemini", "xai")
PICTURE: Final = "data:image/png;base64,iVBORw0KGgo="
SHOWN: Final = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": PICTURE}}],
    }
]
SCHEMA: Final = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
FORMAT: Final = {"type": "json_schema", "json_schema": {"name": "page", "schema": SCHEMA}}
TOOL: Final = {"type": "function", "function": {"name": "note", "parameters": SCHEMA}}
CALLS: Final[Mapping[str, tuple[Any, dict[str, Any]]]] = {
    "default": ("hi", {}),
    "reasoning=False": ("hi", {"reasoning": False}),
    "reasoning=high": ("hi", {"reasoning": "high"}),
    "a tool": ("hi", {"tools": [TOOL]}),
    "a schema": ("hi", {"response_format": FORMAT}),
    "temperature=0.3": ("hi", {"temperature": 0.3}),
    "a picture": (SHOWN, {}),
}
_NAMES_SHOWN: Final = 4


def provider_of(name: str) -> BaseProvider:
    return build(name, "https://study.openai.azure.com" if name == "azure" else None, api_key="k")


def models_of(name: str) -> dict[str, Mapping[str, Any]]:
    """Return the rows of the models of a provider that have not ended, by their name at the provider.

    The map may have two rows for a name. The one with the prefix wins.
    """
    return {
        key.removeprefix(f"{name}/"): row
        for key, row in sorted(price_map().items(), key=lambda item: "/" in item[0])
        if row.get("litellm_provider") == name
        and row.get("mode") in ("chat", "responses")
        and (parse_date(row.get("deprecation_date")) or TODAY) >= TODAY
    }


def sent(provider: BaseProvider, model: str, call_name: str) -> dict[str, Any] | LLMError:
    """Return the body that would be sent for a call, without a server; or the error that is raised instead."""
    prompt, given = CALLS[call_name]
    options = {name: value for name, value in given.items() if name != "temperature"}
    call = Call(prompt, model, given.get("temperature", DEFAULT_TEMPERATURE), DEFAULT_MAX_TOKENS, options=options)
    thinks = options.get("reasoning") is not False
    needs = needs_responses(provider.spec, model, tools="tools" in options, reasoning=thinks)
    request_format = RequestFormat(unsupported=provider.catalog.rejected(model), api="responses" if needs else "chat")
    api = request_format.api or "chat"
    try:
        request = build_request(provider.spec, prompt, model, checked_keywords(provider.spec, call))
        while True:
            try:
                written = request.to_openai(request_format, context_length=None, max_tokens=None, prefill=None)
                return dict(
                    _litellm.build_http_request(provider.spec, provider.endpoint, model, *written, api).body or {}
                )
            except CapabilityError as error:
                change = request.next_format(request_format, error, api=api)
                if change is None:
                    raise
                request_format = change[0]
    except LLMError as error:
        return error


@cache
def outcomes_of(name: str) -> dict[str, dict[str, dict[str, Any] | LLMError]]:
    """Return the outcomes of all calls, by model and call."""
    provider = provider_of(name)
    return {model: {call: sent(provider, model, call) for call in CALLS} for model in models_of(name)}


def summary(outcome: dict[str, Any] | LLMError) -> str:
    """Return the parameters of a body in one line, or the text of an error."""
    if isinstance(outcome, LLMError):
        return f"refused: {outcome.what}. {outcome.hint}"
    fields = {name: value for name, value in outcome.items() if name not in ("model", "stream", "stream_options")}
    for name in ("messages", "input", "tools", "response_format", "text"):
        if name in fields:
            fields[name] = "a picture" if PICTURE in json.dumps(fields[name]) else name
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(fields.items()) if value != "messages")


def table() -> str:
    """Return the table: for each provider the groups of models with the same requests."""
    lines = [f"LiteLLM {version('litellm')}, models that have not ended on {TODAY}"]
    for name in PROVIDERS:
        groups = defaultdict[tuple[str, ...], list[str]](list)
        for model, outcomes in outcomes_of(name).items():
            groups[tuple(map(summary, outcomes.values()))].append(model)
        for group, models in groups.items():
            more = f" and {len(models) - _NAMES_SHOWN} more" if len(models) > _NAMES_SHOWN else ""
            lines += ["", f"{name}: {', '.join(models[:_NAMES_SHOWN])}{more}"]
            lines += [f"  {call:<16} {outcome}" for call, outcome in zip(CALLS, group, strict=True)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
