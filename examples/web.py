"""A FastAPI endpoint that streams an answer, as server-sent events, to the page web.html.

    pip install fastapi uvicorn
    python -m uvicorn --port 8765 --app-dir examples web:app

Then open http://127.0.0.1:8765. LLM_PROVIDER selects the model. If the reader leaves the page, the request ends.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, StreamingResponse

from learnflow.llm import Failover, Finished, LLMError, TextDelta, get_provider
from learnflow.llm.integrations.public_messages import public_message

app = FastAPI()
provider = get_provider()  # one for all requests; it sends nothing yet
app.get("/")(lambda: FileResponse(Path(__file__).with_suffix(".html")))


@app.get("/answer")
async def answer(question: str) -> StreamingResponse:
    """Stream the answer to a question."""
    return StreamingResponse(events(question), media_type="text/event-stream")


async def events(question: str) -> AsyncIterator[str]:
    """Yield each event of an answer as the page expects it: a name and a text."""
    try:
        async for event in provider.stream(question, temperature=0).events():
            match event:
                case TextDelta(text):
                    yield f"event: text\ndata: {json.dumps(text)}\n\n"
                case Failover(before, after):
                    yield f"event: note\ndata: {json.dumps(f'{before} failed, {after} continues')}\n\n"
                case Finished(done):
                    yield f"event: end\ndata: {json.dumps(f'{done.model} at {done.provider}')}\n\n"
    except LLMError as error:  # the reader gets a sentence without addresses and settings
        yield f"event: end\ndata: {json.dumps(public_message(error, 'en'))}\n\n"
