"""Measure the speed of each ready provider on this machine, with the same questions one after the other.

    python benchmarks/bench.py [-p NAME] [-m MODEL ...] [--rounds 3] [--max-tokens 200] [--json]

Without ``-p`` it measures the providers of LLM_PROVIDERS, else the local servers that respond. It loads a local model
first. The table has medians: seconds to load, to the first token and to the end, and tokens. The rate is that of all
answers together, so that many fast answers have one, too. ``--json`` has all answers. A cloud is measured only if it is
named, and its requests cost money. Exit code 1 if all requests failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from learnflow.llm import LLMError, errors, get_provider
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.cli.terminal import notify, table

MIN_S: Final = 0.05  # of generation, in all answers together; a shorter time is not measured
MIN_SHARE: Final = 0.05  # of an answer's time that is generation; in a shorter one, all pieces arrive together
NO_RATE: Final = (
    "no tokens per second: the answers are too short, or arrive in one piece. Raise --max-tokens or --rounds"
)
QUESTIONS: Final = (
    "Explain RSA encryption",
    "What is photosynthesis? Answer in five sentences.",
    "Объясни, что такое энтропия, тремя предложениями.",
)
COLUMNS: Final = {"first_token_s": 3, "tokens_per_s": 1, "total_s": 3, "tokens": 0}  # with decimal places


@dataclass(frozen=True)
class Answer:
    """The measurements of one answer: seconds, the tokens that the server reported, or the class of the error."""

    question: int
    first_token_s: float | None = None
    total_s: float | None = None
    tokens: int | None = None
    error: str | None = None

    @property
    def generation(self) -> tuple[int, float]:
        """Return the tokens after the first one, and their seconds; zeros if they did not arrive one by one."""
        if self.tokens is None or self.total_s is None or self.first_token_s is None:
            return 0, 0.0
        seconds = self.total_s - self.first_token_s
        return (self.tokens - 1, seconds) if seconds >= MIN_SHARE * self.total_s else (0, 0.0)


@dataclass
class Result:
    """The answers of one model of one provider."""

    provider: str
    model: str
    load_s: float | None = None
    answers: list[Answer] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float | None:
        """Return the rate after the first tokens of all answers; None if they are too short to measure it."""
        parts = [answer.generation for answer in self.answers]
        seconds = sum(part for _, part in parts)
        return sum(tokens for tokens, _ in parts) / seconds if seconds >= MIN_S else None

    def measures(self) -> dict[str, float | None]:
        """Return the value of each column: the rate, and medians."""
        return {name: self.tokens_per_s if name == "tokens_per_s" else self.median(name) for name in COLUMNS}

    def median(self, measure: str) -> float | None:
        """Return the median of all answers; None if none has the measure."""
        values = [value for answer in self.answers if (value := getattr(answer, measure)) is not None]
        return statistics.median(values) if values else None

    def as_json(self) -> dict[str, Any]:
        """Return the columns and every answer."""
        return asdict(self) | self.measures()

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        load = "-" if self.load_s is None else f"{self.load_s:.1f}"
        measures = self.measures().items()
        cells = ["-" if value is None else f"{value:.{COLUMNS[measure]}f}" for measure, value in measures]
        failed = [answer.error for answer in self.answers if answer.error]
        counts = ", ".join(f"{failed.count(name)} {name}" for name in dict.fromkeys(failed))
        return (self.provider, self.model, load, *cells, counts or "-")


async def bench(provider: BaseProvider, model: str | None, options: argparse.Namespace, result: Result) -> None:
    """Load the model, then send one question after the other."""
    try:
        await provider.prepare()
        if provider.spec.local:
            began = time.monotonic()
            await provider.warm_up(model)
            result.load_s = time.monotonic() - began
    except LLMError as error:
        print(error, file=sys.stderr)
        result.answers.append(Answer(0, error=type(error).__name__))
        return
    for at in range(options.rounds * len(QUESTIONS)):
        number = at % len(QUESTIONS)
        try:
            done = await provider.stream(QUESTIONS[number], model, 0.0, options.max_tokens).final_completion()
        except LLMError as error:
            result.answers.append(Answer(number, error=type(error).__name__))
            if isinstance(error, errors.ConnectionFailed | errors.TimedOut):
                break  # each of the other questions would wait for the same timeout
            continue
        result.model = done.model or result.model
        result.answers.append(Answer(number, done.first_token_s, done.total_s, done.usage.completion_tokens))


async def run(options: argparse.Namespace) -> int:
    router = get_provider(options.provider)
    await router.refresh()  # finds local servers if no provider is configured
    results: list[Result] = []
    try:
        for provider in router.providers:
            health = await provider.refresh()
            if not health.ready:
                print(f"{provider.name} is skipped: {health.detail}", file=sys.stderr)
                continue
            for model in options.model or [None]:
                results.append(Result(provider.name, model or provider.model or "?"))
                await bench(provider, model, options, results[-1])
    finally:  # Ctrl-C prints the answers so far
        if options.json:
            print(json.dumps([result.as_json() for result in results], indent=2))
        elif results:
            titles = ("PROVIDER", "MODEL", "LOAD s", "FIRST s", "TOKENS/s", "TOTAL s", "TOKENS", "FAILED")
            table(titles, [result.row() for result in results])
            for result in results:
                if result.median("tokens") and result.tokens_per_s is None:
                    notify(f"{result.provider}, {result.model}: {NO_RATE}", prefix="")
    return 0 if any(result.median("total_s") is not None for result in results) else 1


def positive(text: str) -> int:
    """Parse a positive integer."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main(arguments: list[str] | None = None) -> int:
    logging.getLogger("learnflow.llm").setLevel(logging.ERROR)  # an answer that ends at --max-tokens is no fault here
    parser = argparse.ArgumentParser(description="Show how fast each ready provider answers on this machine.")
    parser.add_argument("-p", "--provider", help="provider instead of LLM_PROVIDERS")
    parser.add_argument(
        "-m", "--model", action="append", help="model instead of the provider's default; may be repeated"
    )
    parser.add_argument("--rounds", type=positive, default=3, help="rounds of all questions (3)")
    parser.add_argument("--max-tokens", type=positive, default=200, help="limit of an answer (200)")
    parser.add_argument("--json", action="store_true", help="print every answer")
    try:
        return asyncio.run(run(parser.parse_args(arguments)))
    except LLMError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
