"""``explain``: show which provider would serve a request, and why the others would not.

Servers are probed only with ``--probe``, or if no provider is configured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Unpack

import click

from ..adapter.provider import BaseProvider
from ..base import Call, Options, Prompt
from ..capabilities import is_same_model
from ..factory import get_provider
from ..routing.candidate import Candidate
from ..routing.router import RouterProvider
from ..routing.selection import Chain, first_to_recover, select
from .command import ExitCode, command, model_option, provider_option
from .status import NO_SERVER
from .terminal import notify, progress, table

_MAX_TOKENS: Final = 10_000_000  # the limit of --tokens
_SERVES: Final = {True: "yes", False: "no", None: "unknown"}
_IMAGE: Final = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a provider would serve a request, and why.

    Attributes:
        model: the model that would answer, according to the last probe. Without a probe, the requested model.
        serves: True if the provider would get the request. None if the provider would get the request, but a required
            capability is missing or unknown. False if the provider would not get the request.
        reason: the reason for ``serves``.
        rank: the position in the operator's order, from 0. Load-balanced providers have the same rank.
        is_fallback: whether the provider would get the request if all providers before it fail.
    """

    provider: str
    model: str | None
    serves: bool | None
    reason: str
    rank: int
    is_fallback: bool


@command
@click.argument("prompt", default="")
@model_option
@click.option(
    "--tokens", type=click.IntRange(0, _MAX_TOKENS), default=0, metavar="N", help="Add N tokens to the prompt."
)
@click.option("--image", is_flag=True, help="Add an image to the request.")
@click.option("--tools", is_flag=True, help="Add a tool to the request.")
@click.option("--schema", is_flag=True, help="Add a JSON schema to the request.")
@click.option("--probe", is_flag=True, help="Probe the servers first.")
@provider_option
async def explain(
    prompt: str,
    model: str | None,
    tokens: int,
    image: bool,
    tools: bool,
    schema: bool,
    probe: bool,
    provider: str | None,
) -> int:
    """Show which provider would serve a request, and why the others would not. The prompt is not sent."""
    router = get_provider(provider)
    probe = probe or not router.providers
    if probe:
        with progress("probing servers"):
            await router.refresh()  # finds local servers if no provider is configured
    text = prompt + " word" * tokens
    content: Any = [{"role": "user", "content": [{"type": "text", "text": text}, _IMAGE]}] if image else text
    options: dict[str, Any] = {"tools": [{}]} if tools else {}
    if schema:
        options["response_format"] = {"type": "json_schema"}
    verdicts = verdicts_of(router, content, model, **options)
    if verdicts:
        rows = (
            (str(verdict.rank + 1), verdict.provider, verdict.model or "-", *_serves_cells(verdict, probe))
            for verdict in verdicts
        )
        table(("RANK", "PROVIDER", "MODEL", "SERVES", "WHY"), rows)
    else:
        notify(NO_SERVER)
    return ExitCode.OK if any(verdict.serves is not False for verdict in verdicts) else ExitCode.NO_PROVIDER


def verdicts_of(
    router: RouterProvider, prompt: Prompt, model: str | None = None, **options: Unpack[Options]
) -> list[Verdict]:
    """Return a verdict on each provider of a router, sorted by LLM_ROUTING. No request is sent."""
    chain = router.chain_without_probes(Call(prompt, model, options=options))
    order = chain.sorted_candidates()
    capable = [candidate for candidate in order if not (chain.missing(candidate) or _predict(candidate)[1])]
    chosen = select(capable, chain.settings.llm_routing) or (first_to_recover(capable) if capable else None)
    return [_verdict(candidate, chain, is_chosen=candidate is chosen) for candidate in order]


def _predict(candidate: Candidate) -> tuple[str | None, str | None]:
    """Predict the model that would answer, or the reason why the request would fail; (None, None) if unknown."""
    provider = candidate.original
    return provider.catalog.predict(candidate.target.model) if isinstance(provider, BaseProvider) else (None, None)


def _capability_caveat(candidate: Candidate, chain: Chain) -> str | None:
    """Describe the required capabilities that the provider lacks, else the unknown ones; None if it has all."""
    capabilities: Mapping[str, Any] = candidate.facts.capabilities
    required = chain.requirements.capabilities
    if lacking := [name for name in required if capabilities[name] is False]:
        return f"would be used as the only provider, although it lacks {', '.join(lacking)}"
    unknown = [name for name in required if capabilities[name] is None]
    return f"would be used; it is unknown whether it has {', '.join(unknown)}" if unknown else None


def _verdict(candidate: Candidate, chain: Chain, *, is_chosen: bool) -> Verdict:
    serves: bool | None = False
    is_fallback = False
    requested_model, (model, failure) = candidate.target.model, _predict(candidate)
    if missing := chain.missing(candidate):
        reason = missing[0] if candidate.creation_error else f"lacks {', '.join(missing)}"
    elif failure:
        reason = failure
    elif not is_chosen and not candidate.ready and candidate.breaker:
        reason = f"its circuit breaker is open after {type(candidate.breaker.error).__name__}"
    elif not is_chosen:
        is_fallback, reason = True, "would be used if the providers before it fail"
    elif caveat := _capability_caveat(candidate, chain):
        serves, reason = None, caveat
    else:
        serves, reason = True, "would serve"
    if serves is not False and candidate.facts.cold:
        reason += ", after it has loaded the model"
    if requested_model and model and not is_same_model(requested_model, model):
        reason += f"; the server answers with {model}, not with {requested_model}"
    return Verdict(candidate.name, model or requested_model, serves, reason, candidate.rank, is_fallback)


def _serves_cells(verdict: Verdict, probed: bool) -> tuple[str, str]:
    """Return the cells of the columns SERVES and WHY. Without a probe, "yes" becomes "unknown"."""
    if verdict.serves and not probed:
        return "unknown", "would be used; use --probe to probe the servers first"
    serves = "fallback" if verdict.is_fallback else _SERVES[verdict.serves]
    return serves, verdict.reason.removeprefix(f"{verdict.provider}: ")
