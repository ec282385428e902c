"""Structured output: request a schema in one of three modes, validate the answer, and ask for a correction.

Every answer is validated, whatever the server guarantees. The request calls ``formatted``, an attempt calls ``parsed``,
and ``reasked`` wraps attempts.
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

_MAX_REASON_CHARS: Final = 1000  # a validation message may quote the whole answer
_ANSWER_AGAIN: Final = "Answer again from the beginning, with the whole corrected JSON and nothing else."


def formatted(response_format: type[BaseModel] | dict[str, Any], mode: SchemaMode) -> tuple[Any, str | None]:
    """Return the ``response_format`` to send in this mode, and an instruction for the prompt; None for none."""
    if mode == "json_schema" or isinstance(response_format, dict):
        return response_format, None  # LiteLLM converts a class to OpenAI's strict schema
    schema = json.dumps(response_format.model_json_schema(), ensure_ascii=False)
    instruction = f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    return ({"type": "json_object"} if mode == "json_object" else None), instruction


def correction(reason: str) -> str:
    """Return the message that asks a model to correct its answer."""
    return f"Your answer above is not what was asked for: {reason}\n\n{_ANSWER_AGAIN}"


def is_validated(response_format: Any) -> bool:
    """Return whether answers in this format are validated."""
    free = isinstance(response_format, dict) and response_format.get("type") == "text"
    return response_format is not None and not free


def parsed(response_format: Any, text: str) -> Any:
    """Return an instance of the class, or the JSON value if the format is a dict; None for plain text.

    Args:
        response_format: of the call; None for plain text.
        text: the answer.

    Raises:
        SchemaMismatch: the text does not match the format.
    """
    if not is_validated(response_format):
        return None
    if isinstance(response_format, dict):
        parsed_json = parse_answer(text)
        if response_format.get("type") == "json_schema":
            _validate(parsed_json, response_format["json_schema"].get("schema"))
        return parsed_json
    from pydantic import ValidationError  # noqa: PLC0415  # only a schema needs it

    try:
        return response_format.model_validate_json(_without_fence(text))
    except ValidationError as error:
        # only names of fields: deeper locations may be keys that the model wrote
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        places = [str(fault["loc"][0]) if fault["loc"] else "JSON" for fault in faults]
        named = [place for place in dict.fromkeys(places) if place == "JSON" or place in response_format.model_fields]
        what = f"the answer does not match {response_format.__name__}: {', '.join(named)}".rstrip(": ")
        reasons = [f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}" for fault in faults]
        raise _mismatch(what, "; ".join(reasons)) from None
    except Exception as error:  # noqa: BLE001  # a validator of the caller's may raise anything
        what = f"the answer does not match {response_format.__name__}: a validator raised {type(error).__name__}"
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
    """Run attempts until an answer matches its schema. After a mismatch, ask the model for a correction.

    Args:
        once: returns the work of one attempt.
        request: of the first attempt.
        attempt: the first attempt.
        times: the most corrections to ask for.
        limit_s: seconds for all attempts.
        provider: its name.
        emit: receives the answer in one piece.

    Raises:
        LLMError: the last attempt failed. If the provider refuses a request for a correction, which the caller did not
            write, the error before it is raised.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    rejected, tried = list[Completion](), attempt.tried
    failed: LLMError | None = None
    while True:
        began = loop.time()
        try:
            completion = await once(replace(request, timeout=started + limit_s - began), attempt)(Emit())
            emit(TextDelta(completion.text))
            return _combined(completion, rejected, began - started)
        except LLMError as error:
            tried.append(Tried(provider, error.model, type(error).__name__, error.status, loop.time() - began))
            refused = isinstance(error, (CapabilityError, RequestError))
            last, failed = error, failed if failed and refused else error
        left_s = started + limit_s - loop.time()
        answer = last.answer if isinstance(last, SchemaMismatch) else None
        reason = failed.reason if isinstance(failed, SchemaMismatch) else ""
        if answer is None or not reason or len(tried) > times or left_s <= 0:
            failed.attempts = tuple(tried) if len(tried) > 1 else ()
            raise failed.with_traceback(None)
        rejected.append(answer)
        request = request.with_correction(answer.text, reason)
        patience = attempt.patience and min(attempt.patience, left_s / 2)  # leaves time for other providers
        attempt = replace(attempt, number=attempt.number + 1, patience=patience)


def _combined(completion: Completion, rejected: Sequence[Completion], later_s: float) -> Completion:
    """Add usage and cost of the rejected answers, and the seconds between the first attempt and the last."""
    if not rejected:
        return completion
    costs = [answer.cost for answer in (*rejected, completion)]
    return replace(
        completion,
        usage=sum((answer.usage for answer in rejected), completion.usage),
        cost=None if None in costs else sum(cost for cost in costs if cost is not None),
        first_token_s=None if completion.first_token_s is None else later_s + completion.first_token_s,
        total_s=later_s + completion.total_s,
        attempts=len(rejected) + completion.attempts,
    )


# Not validated, because they may take unlimited time with what a model wrote, and block the event loop.
_UNBOUNDED_KEYWORDS: Final = ("pattern", "patternProperties", "uniqueItems")


def _validate(answer: Any, schema: Any) -> None:
    """Raise SchemaMismatch if an answer does not match a JSON schema. An invalid schema accepts every answer."""
    if not isinstance(schema, dict):
        return
    import jsonschema  # noqa: PLC0415  # only a schema needs it
    from referencing import Registry  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        loose: Any = jsonschema.validators.extend(kind, dict.fromkeys(_UNBOUNDED_KEYWORDS, lambda *_: None))  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001  # the schema is invalid, and the server accepted it
        return
    try:
        validator = loose(schema, registry=Registry())  # fetches no $ref
        fault = jsonschema.exceptions.best_match(validator.iter_errors(answer))
    except Unresolvable:
        return  # a $ref leads out of the schema
    except Exception as error:  # noqa: BLE001  # huge numbers, deep nesting
        what = f"the answer cannot be validated against the JSON schema ({type(error).__name__})"
        raise _mismatch(what, what) from None
    if fault:
        properties = schema.get("properties")
        place = str(fault.absolute_path[0]) if fault.absolute_path else ""
        named = f" at {place}" if isinstance(properties, dict) and place in properties else ""
        what = f"the answer does not match the JSON schema{named} ({fault.validator})"
        raise _mismatch(what, f"{fault.json_path}: {fault.message}")


def parse_answer(text: str) -> Any:
    """Parse an answer as JSON. Raise SchemaMismatch if it is not JSON."""
    try:
        return parse_json(_without_fence(text))
    except ValueError as error:
        raise _mismatch("the answer is not JSON", f"it is not JSON ({error})") from None


def _mismatch(what: str, reason: str) -> SchemaMismatch:
    """Return the error, with the reason for the request for a correction."""
    error = SchemaMismatch(what)
    error.reason = printable(reason, _MAX_REASON_CHARS)
    return error


def _without_fence(text: str) -> str:
    """Return an answer without the Markdown fence that many models add."""
    bare = text.strip()
    if not (bare.startswith("```") and bare.endswith("```") and "\n" in bare):
        return text
    return bare.removesuffix("```").partition("\n")[2]
