"""Runs LearnFlow's own graph inside its checkout, as its service starts it; prints our events and the end as JSON.

    learnflow_driver.py QUESTION [REPLY ...]

The replies are the student's, after the notes; with one of them the human in the loop is on. The live test starts it
with LearnFlow's interpreter, in the copied checkout. Nothing of LearnFlow is kept here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from langfuse.callback import CallbackHandler
from langgraph.checkpoint.memory import MemorySaver
from langgraph.types import Command
from learnflow.config.config_manager import initialize_config_manager
from learnflow.config.settings import get_settings
from learnflow.core.graph import create_workflow
from learnflow.core.state import GeneralState
from learnflow.models.model_factory import initialize_model_factory
from learnflow.services.hitl_manager import get_hitl_manager

from learnflow.llm import events

NOTES = "Notes of a lesson: a key pair has a public half and a private half, and factoring is hard."


def show(**said: Any) -> None:
    print(json.dumps(said, ensure_ascii=False, default=str), flush=True)


def send_spans() -> None:
    """To where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says: the recipe of docs/learnflow.md for Langfuse."""
    from opentelemetry import trace  # noqa: PLC0415  # only this run needs it
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


async def main(question: str, *replies: str) -> None:
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        send_spans()
    events.add_sink(lambda event: show(event=type(event).__name__, **events.log_fields(event)))
    settings = get_settings()
    initialize_model_factory(settings.openai_api_key, initialize_config_manager(settings.graph_config_path))
    graph = create_workflow().compile(checkpointer=MemorySaver())
    get_hitl_manager().bulk_update("1", enable_all=bool(replies))
    tracing = CallbackHandler()
    config: Any = {"configurable": {"thread_id": "1"}, "callbacks": [tracing]}
    given: Any = GeneralState(input_content=question)
    student = iter((NOTES, *replies))
    modes = ["updates", *filter(None, [os.environ.get("STREAM_MODE")])]
    while True:
        async for mode, told in graph.astream(given, config, stream_mode=modes):
            if mode == "updates":
                show(node=next(iter(told)))
            else:
                chunk, about = told
                show(of=about["langgraph_node"], token=chunk.content)
        state = await graph.aget_state(config)
        if not state.interrupts:
            break
        show(to_student=state.interrupts[0].value["message"])
        given = Command(resume=next(student))
    tracing.flush()
    show(state={name: value for name, value in state.values.items() if name != "feedback_messages"})


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
