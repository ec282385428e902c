"""Two texts and twenty questions through an engine: the share of the prompts that comes from the cache of a server."""

from __future__ import annotations

import random

import pytest
from engines import MARKS, Configure, Report, Start, StartEngine
from replicas import GRAMMAR, material, question

from learnflow.llm import Completion

pytestmark = MARKS


def cached_share(answers: list[tuple[int, Completion]]) -> float:
    """Return the cached share of the prompts, without the first answer about each text, which reads it."""
    rest = []
    for text in (0, 1):
        usages = [done.usage for which, done in answers if which == text]
        rest += sorted(usages, key=lambda usage: usage.cached_tokens or 0)[1:]
    return sum(usage.cached_tokens or 0 for usage in rest) / sum(usage.prompt_tokens or 0 for usage in rest)


@pytest.mark.parametrize("by", ["session", "round_robin"])
async def test_session_keeps_text_in_cache(
    start_llama: Start, start_engine: StartEngine, configure: Configure, report: Report, by: str
) -> None:
    """The questions come one after the other; ``benchmarks/replicas.py`` sends them at once."""
    one, two = start_llama(slots=1), start_llama(slots=1)
    options = ("--policy", "round_robin") if by == "round_robin" else ()
    provider = configure(await start_engine([one.url, two.url], *options).healthy(), GPUS_MAX_CONCURRENCY="2")
    order = [(at % 2, at // 2) for at in range(20)]
    random.Random(1).shuffle(order)  # noqa: S311  # the same in each run
    texts = [material(number) for number in (7001, 7002)]
    answers = []
    for text, number in order:
        messages = question(texts[text], number)
        done = await provider.complete(
            messages, temperature=0, max_tokens=4, extra_body=GRAMMAR, session=f"lesson-{text}"
        )
        answers.append((text, done))
    share = cached_share(answers)
    report(f"share of the prompts from cache, {by}", f"{share:.3f}")
    if by == "session":
        assert share > 0.95
