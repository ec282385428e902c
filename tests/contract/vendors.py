"""Makes ``learnflow/llm/providers/vendors.json`` from the installed LiteLLM: ``make vendors``.

A provider of LiteLLM's becomes a row where its configuration writes OpenAI's dialect to ``<base>/chat/completions`` and
LiteLLM knows where it is and which variable holds its key. Those that this project has by hand, and those that need
more than an address and a key (an account in the URL, a token of their own, another dialect), are left out.
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
_SELF: Final = ("openai_like", "custom_openai", "custom", "aiohttp_openai", "vllm", "oobabooga")  # no vendors
# Where LiteLLM's own default is not the server's: Docker's documentation has port 12434 (2026-08).
_CORRECTED: Final = {"docker_model_runner": "http://localhost:12434/engines"}
_OURS: Final = {"lm_studio", "hosted_vllm", "litellm_proxy"}
_LOOPBACK: Final = re.compile(r"^http://(localhost|127\.)")


class _Recorded(dict[str, str]):
    """An environment without variables that remembers which ones were looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.append(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.asked.append(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.asked.append(str(name))
        return super().__contains__(name)


def vendors() -> list[dict[str, Any]]:
    """A row for each: name, address, variables of its key and address, whether it is a server of one's own."""
    litellm = _litellm._load()
    return sorted(_rows(litellm), key=lambda row: row["name"])


def _rows(litellm: Any) -> Iterator[dict[str, Any]]:
    from litellm.llms.openai.chat.gpt_transformation import OpenAIGPTConfig  # noqa: PLC0415

    by_hand = {spec.litellm for spec in SPECS.values()} | _OURS | set(_SELF) | set(SPECS)
    for provider in litellm.types.utils.LlmProviders:
        name = provider.value
        if name in by_hand or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            continue
        try:
            config = litellm.utils.ProviderConfigManager.get_provider_chat_config("a-model", provider)
        except Exception:  # noqa: BLE001, S112  # it has none
            continue
        if isinstance(config, OpenAIGPTConfig):
            base, asked = _address(litellm, config, name)
            base = _CORRECTED.get(name, base)
            keys = [each for each in asked if re.search(r"(API_?KEY|API_TOKEN|TOKEN)$", each)]
            urls = [each for each in asked if re.search(r"(API_BASE|BASE_URL|API_URL|ENDPOINT)$", each)]
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
    """Where LiteLLM says that it is, and which variables it looked for."""
    before, recorded = os.environ, _Recorded()
    os.environ = recorded  # type: ignore[assignment]  # noqa: B003
    base: str | None = None
    try:
        try:
            base = litellm.get_llm_provider(model=f"{name}/a-model")[3]
        except Exception:  # noqa: BLE001  # it wants more than a name
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
    own = re.sub(r"[^A-Z0-9]", "", name.upper())[:4]
    asked = [each for each in recorded.asked if re.sub(r"[^A-Z0-9]", "", each).startswith(own) and "AZURE" not in each]
    return (base.rstrip("/").removesuffix("/chat/completions") if base else None), asked


def _path(config: Any, name: str) -> str | None:
    """What it puts between a base and ``/chat/completions``; None where it writes something else."""
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
    except Exception:  # noqa: BLE001  # it wants more than an address and a key
        return None
    plain = {"model": "a-model", "temperature": 0.7, "max_tokens": 5, "stream": True}
    fits = all(body.get(key) == value for key, value in plain.items()) and len(body.get("messages", ())) == 1
    found = re.fullmatch(re.escape(_BASE) + r"(/.+)?/chat/completions", str(url))
    return (found[1] or "") if found and fits else None


if __name__ == "__main__":
    rows = vendors()
    FILE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} vendors: {', '.join(row['name'] for row in rows)}")
