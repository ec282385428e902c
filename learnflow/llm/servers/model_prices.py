"""Capabilities and prices of cloud models: LiteLLM's own price map, read as a JSON file.

Must never import LiteLLM or download anything.
The model catalog uses it for providers whose servers do not report them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

_FILE: Final = "model_prices_and_context_window_backup.json"
_MILLION: Final = 1_000_000
_CAN: Final = {
    "vision": "supports_vision",
    "tools": "supports_function_calling",
    "json_schema": "supports_response_schema",
    "reasoning": "supports_reasoning",
    "prefill": "supports_assistant_prefill",
}


@cache
def table() -> Mapping[str, Mapping[str, Any]]:
    """Return the whole map; a tenth of a second the first time. Empty if LiteLLM has none."""
    found = importlib.util.find_spec("litellm")  # finds, and does not import
    for folder in (found and found.submodule_search_locations) or ():
        try:
            rows = json.loads((Path(folder) / _FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(rows, dict):
            return rows
    return {}


def known(prefix: str, model: str) -> dict[str, Any]:
    """Return capabilities of a model, by LiteLLM's prefix of its provider; None for what the map does not have."""
    row = table().get(f"{prefix}/{model}") or table().get(model) or {}
    context, answer = row.get("max_input_tokens"), row.get("max_output_tokens")
    prices = [row.get(f"{kind}_cost_per_token") for kind in ("input", "output")]
    dollars = tuple(price * _MILLION for price in prices if isinstance(price, int | float))
    return {
        **{name: row[key] for name, key in _CAN.items() if isinstance(row.get(key), bool)},
        "context": context if isinstance(context, int) else None,
        "context_served": context if isinstance(context, int) else None,
        "max_output": answer if isinstance(answer, int) else None,
        "cost": dollars if len(dollars) == len(prices) else None,
    }
