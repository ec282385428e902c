"""An answer that breaks at any character is continued by a real server to the identical text (``make live``).

Needs ``LIVE_ANSWERS``: a model that knows them by heart is the only way to know what the text would have been.
``LIVE_STEP`` cuts at every so many characters only (default 7; 1 for every character).
"""

from __future__ import annotations

import pytest
from support import LIVE
from test_live import ANSWERS, named_environment, rows

from learnflow.llm import RouterProvider
from learnflow.llm.providers import CustomProvider, build
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import Fault, FaultServer

__all__ = ["named_environment"]  # a fixture

pytestmark = pytest.mark.live
STEP = int(LIVE.get("LIVE_STEP", "7"))


@rows
@pytest.mark.parametrize("how", ["stream", "generate"])
async def test_cut_at_any_character_the_text_is_the_unbroken_one(row: str, how: str) -> None:
    if not SPECS[row].local or not ANSWERS:
        pytest.skip("needs a server of one's own and LIVE_ANSWERS")
    real = build(row)
    await real.warm_up()
    wrong: list[tuple[str, int]] = []
    cuts = 0
    for number, (prompt, answer, thinking) in enumerate(ANSWERS):
        if thinking and how == "stream":
            continue
        for at in range(1 + number % STEP, len(answer), STEP):
            async with FaultServer(
                "openai", list(answer), thinking=thinking or "", fault=Fault("cut", after=at)
            ) as one:
                broken = CustomProvider(base_url=one.base_url, model="fault-model")
                chain = RouterProvider(broken, [real], breakers=BreakerRegistry())
                if how == "generate":
                    text = await chain.generate(prompt, temperature=0, max_tokens=400)
                else:
                    text = "".join([each async for each in chain.stream(prompt, temperature=0, max_tokens=400)])
            cuts += 1
            if text != answer:
                wrong.append((prompt, at))
    assert cuts
    assert wrong == [], f"{len(wrong)} of {cuts} cuts gave another text"
