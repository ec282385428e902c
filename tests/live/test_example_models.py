"""The models in documents and ``env.example`` do not end within a year, as far as LiteLLM's price map knows.

``make test`` does not run it, because it depends on the date.
"""

from __future__ import annotations

import re
from datetime import date, timedelta

import pytest
from support import ROOT

from learnflow.llm.providers.registry import SPECS, kind_of
from learnflow.llm.servers import model_prices

pytestmark = pytest.mark.live

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
    return {(name, model) for name, model in found if (spec := kind_of(name)) and not spec.local}


def test_documents_name_models_of_clouds() -> None:
    assert {"openai", "anthropic", "gemini", "openrouter"} <= {name for name, _ in examples()}


@pytest.mark.parametrize(("name", "model"), sorted(examples()))
def test_example_model_lives_a_year_longer(name: str, model: str) -> None:
    spec = kind_of(name)
    assert spec
    end = model_prices.end_of(spec, model)
    last = date.today() + timedelta(days=365)  # noqa: DTZ011  # any time zone will do
    assert end is None or end > last, f"{model} ends on {end}"
