"""Structured output: how a schema is requested, fallback level by level, checked, and requested again.

Must never trust a server's promise, or know which server answered.
The request calls ``formatted``, an attempt ``parsed``; ``reasked`` wraps attempts.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ..base import Attempt
from ..completion import Completion, TextDelta
from ..errors import CapabilityError, LLMError, RequestError, SchemaMismatch, Tried
from ..provider_spec import SchemaMode
from ..stream import Emit, Work
from ..transport.untrusted import parse_json, printable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .request import Request

_REASON: Final = 1000  # characters of what is wrong with an answer: a message may quote all of it
_AGAIN: Final = "Answer again from the beginning, with the whole corrected JSON and nothing else."


def formatted(wanted: type[BaseModel] | dict[str, Any], rung: SchemaMode) -> tuple[Any, str | None]:
    """Return ``response_format`` on this fallback level, and the instruction that goes with it."""
    if rung == "json_schema" or isinstance(wanted, dict):
        return wanted, None  # LiteLLM makes OpenAI's strict schema of a class
    schema = json.dumps(wanted.model_json_schema(), ensure_ascii=False)
    words = f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    return ({"type": "json_object"} if rung == "json_object" else None), words


def correction(reason: str) -> str:
    """Return the message to a model whose answer failed its schema."""
    return f"Your answer above is not what was asked for: {reason}\n\n{_AGAIN}"


def checks(wanted: Any) -> bool:
    """Return whether an answer to this ``response_format`` is checked at all."""
    return wanted is not None and not (isinstance(wanted, dict) and wanted.get("type") == "text")


def parsed(wanted: Any, text: str) -> Any:
    """Parse an answer: the instance of the class, or the JSON if a dict asked for it; None if nothing was asked for.

    Raises:
        SchemaMismatch: the text is not what was asked for.
    """
    if not checks(wanted):
        return None
    if isinstance(wanted, dict):
        said = value(text)
        if wanted.get("type") == "json_schema":
            _validate(said, wanted["json_schema"].get("schema"))
        return said
    from pydantic import ValidationError  # noqa: PLC0415  # only a schema needs it

    try:
        return wanted.model_validate_json(_bare(text))
    except ValidationError as error:
        # names of fields only: deeper places may be keys that the model wrote
        places = [str(fault["loc"][0]) if fault["loc"] else "JSON" for fault in error.errors(include_input=False)]
        named = [place for place in dict.fromkeys(places) if place == "JSON" or place in wanted.model_fields]
        what = f"the answer does not fit {wanted.__name__}: {', '.join(named)}".rstrip(": ")
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        reasons = [f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}" for fault in faults]
        raise _mismatch(what, "; ".join(reasons)) from None
    except Exception as error:  # noqa: BLE001  # a validator of the caller's, given what a model wrote
        what = f"{wanted.__name__} cannot be made of the answer ({type(error).__name__} in its validation)"
        raise _mismatch(what, what) from None


async def reasked(
    once: Callable[[Request, Attempt], Work],
    request: Request,
    attempt: Attempt,
    times: int,
    limit_s: float,
    provider: str,
    emit: Emit,
) -> Completion:
    """Run attempts until an answer fits its schema; send one that does not back to the model, with the reason.

    Args:
        once: returns the work of one attempt.
        request, attempt: the first one.
        times: how often an answer is sent back.
        limit_s: seconds for all attempts.
        provider: its name.
        emit: gets the answer in one piece.

    Raises:
        LLMError: the failure of the last attempt. If the provider refuses the conversation with the answer that was
            sent back, which is not the caller's, the failure before.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    unfit, tried = list[Completion](), attempt.tried
    failed: LLMError | None = None
    while True:
        began = loop.time()
        try:
            completion = await once(replace(request, timeout=started + limit_s - began), attempt)(Emit())
            emit(TextDelta(completion.text))
            return _together(completion, unfit, began - started)
        except LLMError as error:
            tried.append(Tried(provider, error.model, type(error).__name__, error.status, loop.time() - began))
            ours = isinstance(error, (CapabilityError, RequestError))
            last, failed = error, failed if failed and ours else error
        left_s = started + limit_s - loop.time()
        wrong = last.answer if isinstance(last, SchemaMismatch) else None
        reason = failed.reason if isinstance(failed, SchemaMismatch) else ""
        if wrong is None or not reason or len(tried) > times or left_s <= 0:
            failed.attempts = tuple(tried) if len(tried) > 1 else ()
            raise failed.with_traceback(None)
        unfit.append(wrong)
        request = request.corrected(wrong.text, reason)
        patience = attempt.patience and min(attempt.patience, left_s / 2)  # other providers need a share of the rest
        attempt = replace(attempt, number=attempt.number + 1, patience=patience)


def _together(completion: Completion, unfit: Sequence[Completion], later_s: float) -> Completion:
    """Add the usage and cost of the answers before it, and the seconds from the first attempt to its own."""
    if not unfit:
        return completion
    costs = [each.cost for each in (*unfit, completion)]
    return replace(
        completion,
        usage=sum((each.usage for each in unfit), completion.usage),
        cost=None if None in costs else sum(cost for cost in costs if cost is not None),
        first_token_s=None if completion.first_token_s is None else later_s + completion.first_token_s,
        total_s=later_s + completion.total_s,
        attempts=len(unfit) + completion.attempts,
    )


# Words of a schema whose check may take any time, given what a model wrote: the event loop would stand still.
_UNBOUNDED: Final = ("pattern", "patternProperties", "uniqueItems")


def _nothing(*_: Any) -> None:
    """Such a word checks nothing."""


def _validate(said: Any, schema: Any) -> None:
    """Check an answer against a JSON schema. Raises SchemaMismatch; a schema that is none checks nothing."""
    if not isinstance(schema, dict):
        return
    import jsonschema  # noqa: PLC0415  # only a schema needs it
    from referencing import Registry  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        loose: Any = jsonschema.validators.extend(kind, dict.fromkeys(_UNBOUNDED, _nothing))  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001  # the schema is none: the server has taken it
        return
    try:
        fault = jsonschema.exceptions.best_match(
            loose(schema, registry=Registry()).iter_errors(said)
        )  # fetches no $ref
    except Unresolvable:
        return  # it refers to what is not in it
    except Exception as error:  # noqa: BLE001  # numbers without bound, depth without end
        what = f"the answer cannot be checked against the JSON schema ({type(error).__name__})"
        raise _mismatch(what, what) from None
    if fault:
        known = schema.get("properties")
        place = str(fault.absolute_path[0]) if fault.absolute_path else ""
        named = f" at {place}" if isinstance(known, dict) and place in known else ""
        what = f"the answer does not fit the JSON schema{named} ({fault.validator})"
        raise _mismatch(what, f"{fault.json_path}: {fault.message}")


def value(text: str) -> Any:
    """Parse an answer as JSON. Raises SchemaMismatch if it is none."""
    try:
        return parse_json(_bare(text))
    except ValueError as error:
        raise _mismatch("the answer is not JSON", f"it is not JSON ({error})") from None


def _mismatch(what: str, reason: str) -> SchemaMismatch:
    """Return the error, with the reason that is sent back to the model."""
    error = SchemaMismatch(what)
    error.reason = printable(reason, _REASON)
    return error


def _bare(text: str) -> str:
    """Remove the fence that many models put around an answer."""
    bare = text.strip()
    if not (bare.startswith("```") and bare.endswith("```") and "\n" in bare):
        return text
    return bare.removesuffix("```").partition("\n")[2]
