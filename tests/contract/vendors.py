"""``make vendors``: write ``learnflow/llm/providers/vendors.json`` from the installed LiteLLM.

The table has the vendors that use OpenAI's API at ``<base>/chat/completions``, with an address and a key variable that
LiteLLM defines. It lacks the vendors that have a file here, and those that need more than an address and a key: an
account in the URL, a token, another API.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from learnflow.llm.adapter import _litellm
from learnflow.llm.providers.registry import SPECS

FILE: Final = Path(__file__).parents[2] / "learnflow" / "llm" / "providers" / "vendors.json"
_BASE: Final = "http://vendor.example/v1"
_SELF: Final = ("openai_like", "custom_openai", "custom", "aiohttp_openai", "vllm", "oobabooga")  # not vendors
# Corrects wrong defaults of LiteLLM: Docker's documentation has port 12434 (2026-08).
_CORRECTED: Final = {"docker_model_runner": "http://localhost:12434/engines"}
_OURS: Final = {"lm_studio", "hosted_vllm", "litellm_proxy"}
_LOOPBACK: Final = re.compile(r"^http://(localhost|127\.)")


class _Recorded(dict[str, str]):
    """An empty environment that records the names of the variables that were read."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        self.names.append(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.names.append(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.append(str(name))
        return super().__contains__(name)


def vendors() -> list[dict[str, Any]]:
    """Return the rows of the table: name, address, variables of key and address, and whether it is a local server."""
    litellm = _litellm._load()
    return sorted(_rows(litellm), key=lambda row: row["name"])


def _rows(litellm: Any) -> Iterator[dict[str, Any]]:
    from litellm.llms.openai.chat.gpt_transformation import OpenAIGPTConfig  # noqa: PLC0415

    by_hand = {spec.litellm_provider for spec in SPECS.values()} | _OURS | set(_SELF) | set(SPECS)
    for provider in litellm.types.utils.LlmProviders:
        name = provider.value
        if name in by_hand or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            continue
        try:
            config = litellm.utils.ProviderConfigManager.get_provider_chat_config("a-model", provider)
        except Exception:  # noqa: BLE001, S112  # the vendor has no configuration
            continue
        if isinstance(config, OpenAIGPTConfig):
            base, variables = _address(litellm, config, name)
            base = _CORRECTED.get(name, base)
            keys = [variable for variable in variables if re.search(r"(API_?KEY|API_TOKEN|TOKEN)$", variable)]
            urls = [variable for variable in variables if re.search(r"(API_BASE|BASE_URL|API_URL|ENDPOINT)$", variable)]
            path = _path(config, name)
            if path is None or not base:
                continue
            yield {
                "name": name,
                "base": base,
                "path": path,
                "keys": list(dict.fromkeys(keys)),
                "urls": list(dict.fromkeys(urls)),
                "local": bool(_LOOPBACK.search(base)),
            }


def _address(litellm: Any, config: Any, name: str) -> tuple[str | None, list[str]]:
    """Return LiteLLM's address of a vendor, and the variables that it read."""
    before, recorded = os.environ, _Recorded()
    os.environ = recorded  # type: ignore[assignment]  # noqa: B003
    base: str | None = None
    try:
        try:
            base = litellm.get_llm_provider(model=f"{name}/a-model")[3]
        except Exception:  # noqa: BLE001  # it requires more than a name
            base = None
        try:
            url = config.get_complete_url(
                api_base=base,
                api_key="k",
                model="a-model",
                optional_params={},
                litellm_params={"custom_llm_provider": name},
                stream=True,
            )
        except Exception:  # noqa: BLE001  # the same
            url = ""
    finally:
        os.environ = before  # noqa: B003
    if not base and url.endswith("/chat/completions") and "//api.openai.com/" not in url:
        base = url.removesuffix("/chat/completions")
    prefix = re.sub(r"[^A-Z0-9]", "", name.upper())[:4]
    variables = [read for read in recorded.names if re.sub(r"[^A-Z0-9]", "", read).startswith(prefix)]
    variables = [read for read in variables if "AZURE" not in read]
    return (base.rstrip("/").removesuffix("/chat/completions") if base else None), variables


def _path(config: Any, name: str) -> str | None:
    """Return the path between a base and ``/chat/completions``; None if the request is not OpenAI's."""
    known = {"api_base": _BASE, "custom_llm_provider": name}
    try:
        url = config.get_complete_url(
            api_base=_BASE, api_key="k", model="a-model", optional_params={}, litellm_params=known, stream=True
        )
        body = config.transform_request(
            model="a-model",
            messages=[{"role": "user", "content": "hi"}],
            optional_params={"temperature": 0.7, "max_tokens": 5, "stream": True},
            litellm_params=known,
            headers={},
        )
    except Exception:  # noqa: BLE001  # it requires more than an address and a key
        return None
    plain = {"model": "a-model", "temperature": 0.7, "max_tokens": 5, "stream": True}
    fits = all(body.get(key) == value for key, value in plain.items()) and len(body.get("messages", ())) == 1
    match = re.fullmatch(re.escape(_BASE) + r"(/.+)?/chat/completions", str(url))
    return (match[1] or "") if match and fits else None


if __name__ == "__main__":
    rows = vendors()
    FILE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} vendors: {', '.join(row['name'] for row in rows)}")
