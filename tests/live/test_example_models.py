"""The models in documents and ``env.example`` do not end within a year by LiteLLM's price map, and are in the lists.

``make test`` does not run it, because it depends on the date.
"""

from __future__ import annotations

import os
import re
from datetime import date, timedelta

import pytest
from support import ROOT

from learnflow.llm.providers.registry import SPECS, build, spec_of_kind
from learnflow.llm.servers import model_prices

pytestmark = pytest.mark.live

ENVIRONMENT = dict(os.environ)  # before ``own_environment``

DOCUMENTS = [ROOT / "README.md", ROOT / "README.ru.md", ROOT / "env.example", *sorted((ROOT / "docs").glob("*.md"))]
_MODEL = re.compile(r"^#? ?([A-Z0-9_]+?)_(?:VISION_)?MODEL=([\w./:-]+)$", re.MULTILINE)
_NODE = re.compile(r"\{provider: (\w+), model_name: ([\w./:-]+)")
_CALL = re.compile(r"get_provider\(\"(\w+)\", model=\"([\w./:-]+)\"")


def examples() -> set[tuple[str, str]]:
    """Return the clouds and models that documents and specs name."""
    found = {(spec.name, spec.example_model) for spec in SPECS.values() if spec.example_model}
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for pattern in (_MODEL, _NODE, _CALL):
            found |= {(name.lower(), model) for name, model in pattern.findall(text)}
    return {(name, model) for name, model in found if (spec := spec_of_kind(name)) and not spec.local}


def test_documents_name_models_of_clouds() -> None:
    assert {"openai", "anthropic", "gemini", "openrouter"} <= {name for name, _ in examples()}


def last_day(name: str, model: str) -> date | None:
    """Return the day on which a model ends at its provider, or for "vendor/model" at its vendor; None if unknown."""
    vendor, _, own_name = model.rpartition("/")
    spec, maker = spec_of_kind(name), spec_of_kind({"google": "gemini"}.get(vendor, vendor))
    assert spec
    return model_prices.shutdown_date(spec, model) or (model_prices.shutdown_date(maker, own_name) if maker else None)


@pytest.mark.parametrize(("name", "model"), sorted(examples()))
def test_example_model_lives_a_year_longer(name: str, model: str) -> None:
    end = last_day(name, model)
    last = date.today() + timedelta(days=365)  # noqa: DTZ011  # any time zone will do
    assert end is None or end > last, f"{model} ends on {end}"


@pytest.mark.parametrize(("name", "model"), sorted((name, model) for name, model in examples() if "<" not in model))
async def test_example_model_is_in_list_of_its_cloud(name: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the list of each cloud whose key is set. ``<NAME>_BASE_URL`` may name another server."""
    spec = spec_of_kind(name)
    assert spec
    named = {variable: ENVIRONMENT[variable] for variable in spec.variable_names("api_key") if variable in ENVIRONMENT}
    if not named:
        pytest.skip("no key is set")
    url = spec.variable("base_url")
    for variable, value in (named | {url: ENVIRONMENT.get(url, "")}).items():
        monkeypatch.setenv(variable, value)
    provider = build(name, model=model)
    health = await provider.refresh()
    assert health.ready, health.detail
    assert "ends on" not in health.detail
    assert any(model in listed for listed in health.models)  # Gemini lists "models/..."
