"""``bench``: the same few questions to each ready provider, and how fast each of them answers on this machine.

Must never ask a cloud that nobody named, or judge what is said.
The command line calls it; ``page`` draws what it found.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from .. import errors
from ..adapter.provider import BaseProvider
from ..errors import LLMError, NotConfigured
from . import bench_page as page
from .status import looked, recorded, used
from .terminal import progress, say, table, write_json

_MEASURABLE_S: Final = 0.05  # from the first token to the end: in less, pieces arrive together
_MEASURABLE_TOKENS: Final = 10  # of fewer a pause is most of the time
_QUESTIONS: Final = (
    "Explain RSA encryption",
    "What is photosynthesis? Timing in five sentences.",
    "Объясни, что такое энтропия, тремя предложениями.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One answer: seconds to the first token and to the end, tokens as the server counted them; or what failed."""

    question: int
    first_token_s: float | None = None
    total_s: float | None = None
    tokens: int | None = None
    error: str | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second, from the first one on; None where there is too little to be measured."""
        if self.tokens is None or self.total_s is None or self.first_token_s is None:
            return None
        seconds = self.total_s - self.first_token_s
        enough = self.tokens >= _MEASURABLE_TOKENS and seconds >= _MEASURABLE_S
        return (self.tokens - 1) / seconds if enough else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one model of one provider did."""

    provider: str
    model: str
    load_s: float | None
    answers: tuple[Timing, ...]

    def median(self, measure: str) -> float | None:
        """Of all answers; None where there is none."""
        values = [value for each in self.answers if (value := getattr(each, measure)) is not None]
        return statistics.median(values) if values else None

    @property
    def failures(self) -> dict[str, int]:
        """How many answers failed, by the class of the error."""
        names = [each.error for each in self.answers if each.error]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    @property
    def told(self) -> dict[str, Any]:
        """What JSON can hold."""
        measures = ("first_token_s", "tokens_per_s", "total_s", "tokens")
        medians = {measure: self.median(measure) for measure in measures}
        return {
            "provider": self.provider,
            "model": self.model,
            "load_s": self.load_s,
            **medians,
            "failures": self.failures,
            "answers": [{**asdict(each), "tokens_per_s": each.tokens_per_s} for each in self.answers],
        }


async def bench(options: SimpleNamespace) -> int:
    """Ask them all, and show it. Returns 0 only where somebody answered.

    Raises NotConfigured where nobody is ready.
    """
    recorded()
    chain, found = await looked(options)
    for each in used(chain, found):
        if not each.health.ready:
            say(f"{each.health.provider} is left out: {each.health.detail}")
    ready = [each.provider for each in used(chain, found) if each.health.ready and each.provider]
    if not ready:
        raise NotConfigured("no provider is ready", hint="See what is wrong with learnflow-llm status")
    if options.html:
        _writable(options.html)
    results: list[Result] = []
    try:
        for provider in ready:
            for model in options.model or [None]:
                await _benched(provider, model, options, results.append)
    finally:  # Ctrl-C: what is there is shown
        _show(results, options)
    return 0 if any(each.median("total_s") for each in results) else 1


def _writable(file: str) -> None:
    """Raises InvalidRequest before the first question, not after the last one."""
    try:
        with Path(file).open("a", encoding="utf-8"):
            return
    except OSError as error:
        what = f"{file} cannot be written ({type(error).__name__})"
    raise errors.InvalidRequest(what, hint="Name another file for --html")


def _show(results: Sequence[Result], options: SimpleNamespace) -> None:
    if options.json:
        write_json([each.told for each in results])
    else:
        table(_TITLES, map(_row, results))
    if options.html:
        _draw(results, options)


def _draw(results: Sequence[Result], options: SimpleNamespace) -> None:
    rounds = "1 round" if options.rounds == 1 else f"{options.rounds} rounds"
    when, asked = time.strftime("%Y-%m-%d %H:%M"), f"{rounds} of {len(_QUESTIONS)} questions"
    about = f"{platform.platform()}, {when}, {asked}, {options.max_tokens} tokens at the most"
    Path(options.html).write_text(page.page([each.told for each in results], about), encoding="utf-8")
    say(f"{options.html} is written")


async def _benched(
    provider: BaseProvider, model: str | None, options: SimpleNamespace, tell: Callable[[Result], None]
) -> None:
    """Loaded first, then asked one question after the other; told even if it is interrupted."""
    name = f"{provider.name} {model or provider.model or ''}".strip()
    load_s, served = None, model or provider.model or "?"
    answers: list[Timing] = []
    try:
        try:
            await provider.prepare()
            if provider.spec.local:
                began = time.monotonic()
                with progress(f"{name}: loading"):
                    await provider.warm_up(model)
                load_s = time.monotonic() - began
        except LLMError as error:
            say(str(error))
            answers.append(Timing(question=0, error=type(error).__name__))
            return
        whole = options.rounds * len(_QUESTIONS)
        with progress(f"{name}: {whole} questions", whole) as show:
            for at in range(whole):
                answer, who = await _answered(provider, model, at % len(_QUESTIONS), options.max_tokens)
                answers.append(answer)
                served = who or served
                show(completed=at + 1)
    finally:
        tell(Result(provider=provider.name, model=served, load_s=load_s, answers=tuple(answers)))


async def _answered(provider: BaseProvider, model: str | None, number: int, most: int) -> tuple[Timing, str | None]:
    try:
        done = await provider.stream(_QUESTIONS[number], model, 0.0, most).whole()
    except errors.NotRecorded:
        raise
    except LLMError as error:
        return Timing(question=number, error=type(error).__name__), None
    usage = done.usage.completion_tokens
    answer = Timing(question=number, first_token_s=done.first_token_s, total_s=done.total_s, tokens=usage)
    return answer, str(done.model)


_TITLES: Final = ("PROVIDER", "MODEL", "LOAD s", "FIRST s", "TOKENS/s", "WHOLE s", "TOKENS", "FAILED")


def _row(result: Result) -> tuple[str, ...]:
    """Medians; "-" where nothing is known."""

    def number(value: float | None, places: int) -> str:
        return "-" if value is None else f"{value:.{places}f}"

    return (
        result.provider,
        result.model,
        number(result.load_s, 1),
        number(result.median("first_token_s"), 3),
        number(result.median("tokens_per_s"), 1),
        number(result.median("total_s"), 2),
        number(result.median("tokens"), 0),
        ", ".join(f"{count} {name}" for name, count in result.failures.items()) or "-",
    )
