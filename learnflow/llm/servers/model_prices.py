"""Capabilities, prices and shutdown dates of cloud models, from the price map in LiteLLM's package.

The map is a JSON file. Reading it neither imports LiteLLM nor downloads anything. ``model_catalog`` uses it for clouds,
because their model lists do not report capabilities.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Final

from ..parameters import REASONING_LEVELS
from ..provider_spec import ProviderSpec
from ..transport.untrusted import parse_date

_FILE: Final = "model_prices_and_context_window_backup.json"
_MILLION: Final = 1_000_000
_CAPABILITY_KEYS: Final = {
    "vision": "supports_vision",
    "tools": "supports_function_calling",
    "json_schema": "supports_response_schema",
    "reasoning": "supports_reasoning",
    "prefill": "supports_assistant_prefill",
}
# Values of "supported_endpoints"
_CHAT: Final = "/v1/chat/completions"
_RESPONSES: Final = "/v1/responses"
_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p")  # rejected if "supports_sampling_params" is False


@cache
def price_map() -> Mapping[str, Mapping[str, Any]]:
    """Read and cache the price map; empty if LiteLLM has no such file. The first call takes 0.1 s."""
    package = importlib.util.find_spec("litellm")  # does not import it
    for folder in (package and package.submodule_search_locations) or ():
        try:
            models = json.loads((Path(folder) / _FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(models, dict):
            return models
    return {}


def find_key(spec: ProviderSpec, model: str | None) -> str | None:
    """Return the key of a cloud's model in the price map; None for a local server, or if the map lacks the model.

    A key with the vendor's prefix wins over a plain name.
    """
    keys = (f"{spec.kind or spec.name}/{model}", f"{spec.litellm_provider}/{model}", model)
    return None if spec.local else next((key for key in keys if key in price_map()), None)


def find_row(spec: ProviderSpec, model: str | None) -> Mapping[str, Any]:
    """Return the row of a cloud's model in the price map; empty if ``find_key`` returns None."""
    return price_map().get(find_key(spec, model) or "", {})


def capabilities_of(spec: ProviderSpec, model: str | None) -> dict[str, Any]:
    """Return the capabilities and the prices (US dollars per million tokens) of a model. None means unknown."""
    row = find_row(spec, model)
    context, output = row.get("max_input_tokens"), row.get("max_output_tokens")
    prices = [row.get(f"{kind}_cost_per_token") for kind in ("input", "output")]
    dollars = tuple(price * _MILLION for price in prices if isinstance(price, int | float))
    # For some vendors, every model that reasons has a reasoning flag. A model that has only other flags does not reason
    flags = [key for key in row if key.startswith("supports_")]
    lacks_reasoning_flag = (
        spec.dialect.litellm_marks_reasoning and flags and not any("reasoning" in key for key in flags)
    )
    return {
        "reasoning": False if lacks_reasoning_flag else None,
        **{name: row[key] for name, key in _CAPABILITY_KEYS.items() if isinstance(row.get(key), bool)},
        "context": context if isinstance(context, int) else None,
        "context_served": context if isinstance(context, int) else None,
        "max_output": output if isinstance(output, int) else None,
        "cost": dollars if len(dollars) == len(prices) else None,
    }


def rejected_by(spec: ProviderSpec, model: str) -> frozenset[str]:
    """Return the sampling parameters and reasoning levels that a model rejects, according to the price map."""
    row = find_row(spec, model)
    levels = row.get("reasoning_effort_levels") or REASONING_LEVELS
    rejected = {
        level
        for level in REASONING_LEVELS
        if level not in levels or row.get(f"supports_{level}_reasoning_effort") is False
    }
    # Without ``supports_none_reasoning_effort``, a model that rejects "minimal" also rejects "none"
    rejects_none = (
        spec.dialect.litellm_marks_reasoning and row.get("supports_none_reasoning_effort", "minimal") in rejected
    )
    rejected |= {"none"} if rejects_none or row.get("thinking_always_on") is True else set()
    return frozenset(rejected.union(_SAMPLING if row.get("supports_sampling_params") is False else ()))


def needs_responses(spec: ProviderSpec, model: str, *, tools: bool, reasoning: bool) -> bool:
    """Return whether a request needs the Responses API.

    It does if the model has no other API, or if the model reasons and the request has tools. ``reasoning`` is False
    only if the request turns reasoning off.
    """
    row = find_row(spec, model)
    paths = row.get("supported_endpoints") or ()
    has_responses = spec.api.responses_path is not None and (_RESPONSES in paths or row.get("mode") == "responses")
    reasons = row.get("supports_reasoning") and (reasoning or not row.get("supports_none_reasoning_effort"))
    return has_responses and bool(_CHAT not in paths or (tools and reasons))


def shutdown_date(spec: ProviderSpec, model: str) -> date | None:
    """Return the day on which a vendor shuts a model down; None if unknown.

    The name of a snapshot is the model's name and a date. If the model itself has no shutdown date, return the latest
    shutdown date of its snapshots; None if a snapshot has no shutdown date.
    """
    if spec.local:
        return None
    key = find_key(spec, model) or model
    snapshot = re.compile(re.escape(key) + r"-\d{4}-?\d{2}-?\d{2}")
    own = parse_date(price_map().get(key, {}).get("deprecation_date"))
    ends = [parse_date(row.get("deprecation_date")) for name, row in price_map().items() if snapshot.fullmatch(name)]
    known = [end for end in ends if end]
    return own or (max(known) if ends and len(known) == len(ends) else None)
