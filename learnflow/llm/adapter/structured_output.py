"""Structured output: request a schema in one of three modes, validate the answer, and ask for a correction.

Every answer is validated, also if the server guarantees the schema. A request is written with ``write_format``, an
answer is read with ``parse``, and ``run_with_corrections`` repeats attempts.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from ..base import Attempt
from ..completion import Completion, TextDelta
from ..errors import CapabilityError, FailedAttempt, LLMError, RequestError, SchemaMismatch
from ..provider_spec import SchemaMode
from ..stream import Emit, Work
from ..transport.untrusted import object_at, parse_json, printable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .request import Request

_MAX_REASON_CHARS: Final = 1000  # a validation message may quote the whole answer
_JSON_START: Final = re.compile(r'\{\s*["}]|\[\s*["{\[]')  # not a brace or a bracket of a sentence
_FENCE: Final = re.compile(r"(?:```\w*)?")  # what may be around the JSON of a whole answer
_DECODER: Final = json.JSONDecoder(strict=False)  # with line ends in strings
_MAX_FAULTS: Final = 1000  # an answer with more faults is not described


def write_format(response_format: type[BaseModel] | dict[str, Any], mode: SchemaMode) -> tuple[Any, str | None]:
    """Return the ``response_format`` parameter and the instruction for the prompt; None for each that is not needed."""
    if mode == "json_schema" or isinstance(response_format, dict):
        return response_format, None  # LiteLLM converts a class to OpenAI's strict schema
    schema = json.dumps(response_format.model_json_schema(), ensure_ascii=False)
    instruction = f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    return ({"type": "json_object"} if mode == "json_object" else None), instruction


def write_correction(reason: str) -> str:
    """Return the message that asks a model to correct its answer, given the fault of the answer."""
    action = "Answer again from the beginning, with the whole corrected JSON and nothing else."
    return f"Your answer above is not what was asked for: {reason}\n\n{action}"


def is_validated(response_format: Any) -> bool:
    """Return whether answers in this format are validated."""
    is_text = isinstance(response_format, dict) and response_format.get("type") == "text"
    return response_format is not None and not is_text


def parse(response_format: Any, text: str) -> Any:
    """Parse an answer.

    Args:
        response_format: the caller's ``response_format``.
        text: the answer.

    Returns:
        An instance if the format is a class, the JSON value if it is a dict; None for plain text.

    Raises:
        SchemaMismatch: the text does not match the format.
    """
    if not is_validated(response_format):
        return None
    if isinstance(response_format, dict):
        value = parse_json_answer(text)
        if response_format.get("type") == "json_schema":
            _validate(value, response_format["json_schema"].get("schema"))
        return value
    from pydantic import ValidationError  # noqa: PLC0415  # only a schema needs it

    value = parse_json_answer(text)
    try:
        limit_steps(response_format.model_json_schema(), value)
        return response_format.model_validate_json(_only_json(text))
    except ValidationError as error:
        # The message names only fields of the class. Deeper locations may contain keys that the model wrote.
        few = error.error_count() <= _MAX_FAULTS
        faults = error.errors(include_url=False, include_context=False, include_input=False) if few else []
        locations = dict.fromkeys(str(fault["loc"][0]) if fault["loc"] else "JSON" for fault in faults)
        fields = [name for name in locations if name == "JSON" or name in response_format.model_fields]
        what = f"the answer does not match {response_format.__name__}: {', '.join(fields)}".rstrip(": ")
        reasons = [f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}" for fault in faults]
        raise _mismatch(what, "; ".join(reasons) or what) from None
    except Exception as error:  # noqa: BLE001  # too many steps; and a validator of the caller may raise anything
        raise _unvalidated(response_format.__name__, error) from None


def check_whole(response_format: Any, text: str) -> None:
    """Raise SchemaMismatch if an answer that ended at a token limit is more or less than one object or list."""
    start, json_text, end = text.partition(_only_json(text)) if is_validated(response_format) else ("", "[", "")
    has_more = not all(_FENCE.fullmatch(around.strip(" \r\n\t\ufeff")) for around in (start, end))
    if has_more or json_text[:1] not in ("{", "["):
        raise SchemaMismatch("the answer may be incomplete")


async def parse_in_background(response_format: Any, text: str) -> Any:
    """Parse an answer as ``parse`` does, in a thread for a JSON schema. Validators of a class run in the event loop."""
    if isinstance(response_format, dict):
        return await asyncio.to_thread(parse, response_format, text)
    return parse(response_format, text)


async def run_with_corrections(
    start: Callable[[Request, Attempt], Work],
    request: Request,
    attempt: Attempt,
    max_corrections: int,
    limit_s: float,
    provider: str,
    emit: Emit,
) -> Completion:
    """Run attempts until an answer matches its schema. After a mismatch, ask the model for a correction.

    Args:
        start: returns the work of an attempt.
        request: the caller's request.
        attempt: the first attempt.
        max_corrections: how many corrections may be requested.
        limit_s: time limit of all attempts together, in seconds.
        provider: the name of the provider, for errors.
        emit: receives the answer in one piece.

    Raises:
        LLMError: the last attempt failed. If the provider refuses the request for a correction, the mismatch before it
            is raised, because the caller did not write that request.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    rejected, failed_attempts = list[Completion](), attempt.failed_attempts
    failure: LLMError | None = None  # the error to raise
    while True:
        began = loop.time()
        try:
            completion = await start(replace(request, timeout=started + limit_s - began), attempt)(Emit())
            emit(TextDelta(completion.text))
            return _add_rejected(completion, rejected, began - started)
        except LLMError as error:
            failed_attempts.append(
                FailedAttempt(provider, error.model, type(error).__name__, error.status, loop.time() - began)
            )
            refused = isinstance(error, (CapabilityError, RequestError))
            last, failure = error, failure if failure and refused else error
        left_s = started + limit_s - loop.time()
        if (
            not isinstance(last, SchemaMismatch)
            or not last.reason
            or len(failed_attempts) > max_corrections
            or left_s <= 0
        ):
            failure.attempts = tuple(failed_attempts) if len(failed_attempts) > 1 else ()
            raise failure.with_traceback(None)
        rejected.append(last.answer)
        request = request.with_correction(last.answer.text, last.reason)
        max_first_token_s = attempt.max_first_token_s and min(
            attempt.max_first_token_s, left_s / 2
        )  # the rest is for other providers
        attempt = replace(attempt, number=attempt.number + 1, max_first_token_s=max_first_token_s)


def _add_rejected(completion: Completion, rejected: Sequence[Completion], delay_s: float) -> Completion:
    """Add the usage, the cost and the time of rejected answers to a completion.

    Args:
        completion: the completion of the last attempt.
        rejected: the completions of the attempts before it.
        delay_s: seconds from the start of the first attempt to the start of the last.
    """
    if not rejected:
        return completion
    costs = [answer.cost for answer in (*rejected, completion)]
    return replace(
        completion,
        usage=sum((answer.usage for answer in rejected), completion.usage),
        cost=None if None in costs else sum(cost for cost in costs if cost is not None),
        first_token_s=None if completion.first_token_s is None else delay_s + completion.first_token_s,
        total_s=delay_s + completion.total_s,
        attempts=len(rejected) + completion.attempts,
    )


_MAX_STEPS: Final = 100_000  # of one validation; they take a second at most
_MAX_DEPTH: Final = 200  # of keywords; a RecursionError in jsonschema can end in a panic, which is no Exception
# These keywords are not validated. On some answers they take unlimited time.
_UNCHECKED_KEYWORDS: Final = (
    "pattern",
    "patternProperties",
    "uniqueItems",
    "unevaluatedItems",
    "unevaluatedProperties",
)


class TooManySteps(ValueError):
    """A validation takes more steps than ``_MAX_STEPS``."""


@dataclass(slots=True)
class _Validation:
    """A running validation against a JSON schema.

    Attributes:
        steps: the steps that are left.
        depth: how deeply the current keyword is nested.
        results: the first fault of a keyword, by keyword, schema and value. A recursive union would otherwise validate
            a value in exponentially many ways. Schema and value are included, so that their ids stay unique.
    """

    steps: int
    depth: int = 0
    results: dict[tuple[str, int, int], tuple[Any, Any, Any]] = field(default_factory=dict)

    def spend(self, steps: int) -> None:
        """Subtract steps. Raise TooManySteps if no steps are left, or keywords are nested too deeply."""
        self.steps -= steps
        if self.steps < 0 or self.depth > _MAX_DEPTH:
            raise TooManySteps


_validation: ContextVar[_Validation] = ContextVar("learnflow_llm_validation")


@cache
def _bounded(draft: Any) -> Any:
    """Return a validator class that validates like a draft's, and counts its steps in ``_validation``."""
    import attrs  # noqa: PLC0415  # jsonschema's classes are attrs classes
    from jsonschema import ValidationError, validators  # noqa: PLC0415

    def counted(name: str, keyword: Any) -> Any:
        def validate(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
            if name == "additionalProperties" and "patternProperties" in schema:
                return
            run, key = _validation.get(), (name, id(schema), id(instance))
            run.spend(1)
            if key not in run.results:
                run.spend(sum(len(item) for item in (value, instance) if isinstance(item, list | dict)) // 16)
                fault = None
                run.depth += 1
                for error in keyword(validator, value, instance, schema) or ():
                    run.spend(4 + len(error.message) // 128)
                    error.message = error.message[:_MAX_REASON_CHARS]
                    fault = fault or error
                run.depth -= 1
                run.results[key] = schema, instance, fault
            if fault := run.results[key][2]:
                yield ValidationError.create_from(fault)  # validators change its path

        return validate

    keywords = {name: counted(name, keyword) for name, keyword in draft.VALIDATORS.items()}
    bounded: Any = validators.extend(draft, keywords | dict.fromkeys(_UNCHECKED_KEYWORDS, lambda *_: None))  # type: ignore[no-untyped-call]
    bounded.evolve = attrs.evolve  # jsonschema's own selects another class at each "$schema"
    return bounded


def _validate(answer: Any, schema: Any) -> None:
    """Raise SchemaMismatch if an answer does not match a JSON schema. An invalid schema accepts every answer."""
    if not isinstance(schema, dict):
        return
    import jsonschema  # noqa: PLC0415  # only a schema needs it
    from referencing import Registry  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        draft = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        draft.check_schema(schema)
    except Exception:  # noqa: BLE001  # the server accepted this invalid schema
        return
    _validation.set(_Validation(_MAX_STEPS))
    try:
        validator = _bounded(draft)(schema, registry=Registry())  # without access to the network
        fault = jsonschema.exceptions.best_match(validator.iter_errors(answer))
    except Unresolvable:
        return  # a $ref refers to another document
    except Exception as error:  # noqa: BLE001  # too many steps, huge numbers, deep nesting
        raise _unvalidated("the JSON schema", error) from None
    if fault:
        properties = schema.get("properties")
        field = str(fault.absolute_path[0]) if fault.absolute_path else ""
        location = f" at {field}" if isinstance(properties, dict) and field in properties else ""
        what = f"the answer does not match the JSON schema{location} ({fault.validator})"
        raise _mismatch(what, f"{fault.json_path}: {fault.message}")


# The keywords that contain the schema of the same value or of a part of it.
_CONTAINS: Final = {"$ref", "anyOf", "oneOf", "allOf", "properties", "items", "prefixItems", "additionalProperties"}


def limit_steps(schema: Mapping[str, Any], value: Any) -> None:
    """Check how many values a pydantic class would validate. It cannot be interrupted, and tries each kind of a union.

    Args:
        schema: the JSON schema of the class.
        value: the answer as JSON.

    Raises:
        TooManySteps: the validation would take more than ``_MAX_STEPS``.
    """
    definitions = schema.get("$defs") or schema.get("definitions") or {}
    counts: dict[tuple[int, int], int] = {}

    def count(schema: Any, value: Any) -> int:
        key = id(schema), id(value)
        if key in counts or not isinstance(schema, dict):
            return counts.get(key, 0)
        counts[key] = 1 + len(schema.get("enum", ())) // 16
        if not _CONTAINS.isdisjoint(schema):
            name, kinds = schema.get("$ref"), [*chain(*(schema.get(word, ()) for word in ("anyOf", "oneOf", "allOf")))]
            if tag := schema.get("discriminator"):  # it selects one kind
                name, kinds = object_at(tag, "mapping").get(str(object_at(value).get(tag["propertyName"]))), []
            counts[key] += sum(count(kind, value) for kind in (*kinds, definitions.get(str(name).rpartition("/")[2])))
            fields, rest = object_at(schema, "properties"), [schema.get("items"), schema.get("additionalProperties")]
            for at, item in enumerate(value) if isinstance(value, list) else object_at(value).items():
                nested = fields.values() if isinstance(item, dict | list) else ()  # a field may have an alias
                options = [fields[str(at)]] if str(at) in fields else [*rest, *schema.get("prefixItems", ()), *nested]
                counts[key] += sum(count(option, item) for option in options)
        if max(counts[key], len(counts)) > _MAX_STEPS:
            raise TooManySteps
        return counts[key]

    count(schema, value)


def parse_json_answer(text: str) -> Any:
    """Parse an answer as JSON. Raise SchemaMismatch if it is not JSON."""
    try:
        return parse_json(_only_json(text))
    except ValueError as error:
        raise _mismatch("the answer is not JSON", f"it is not JSON ({error})") from None


def _mismatch(what: str, reason: str) -> SchemaMismatch:
    """Return a SchemaMismatch.

    Args:
        what: the fault, without text of the answer.
        reason: the fault in detail, to send to the model. It may quote the answer.
    """
    error = SchemaMismatch(what)
    error.reason = printable(reason, _MAX_REASON_CHARS)
    return error


def _only_json(text: str) -> str:
    """Return the only object or list in an answer, which may have a Markdown fence and sentences around it.

    Return the answer itself if it has none or several different ones, or if one of them is incomplete.
    """
    answer = text.strip().removeprefix("\ufeff").strip()
    candidates, end = set[str](), 0
    while answer[:1] != '"' and (start := _JSON_START.search(answer, end)):  # a JSON string may contain braces
        try:
            end = _DECODER.raw_decode(answer, start.start())[1]
        except (ValueError, RecursionError):
            return answer
        candidates.add(answer[start.start() : end])
    return candidates.pop() if len(candidates) == 1 else answer


def _unvalidated(schema: str, error: Exception) -> SchemaMismatch:
    """Return a SchemaMismatch for an answer that cannot be validated against a schema with this name."""
    what = f"the answer cannot be validated against {schema} ({type(error).__name__})"
    return _mismatch(what, what)
