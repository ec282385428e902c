"""Structured output: the answer is an instance of a pydantic class, or an error.

    python examples/quiz.py RSA

The request contains the schema of the class. An answer that does not fit is sent back to the model with the reason,
then to the next provider. LLM_PROVIDER selects the model.
"""

import asyncio
import sys
from typing import Annotated

from pydantic import BaseModel, Field

from learnflow.llm import LLMError, get_provider


class Quiz(BaseModel):
    """Control questions for a student."""

    questions: Annotated[list[str], Field(min_length=3, max_length=3)]


async def main(topic: str) -> None:
    """Print control questions about a topic."""
    prompt = f"Write three control questions about {topic} as JSON"
    async with get_provider() as provider:
        done = await provider.complete(prompt, response_format=Quiz, temperature=0)
    for question in done.parsed.questions:  # parsed is a Quiz
        print(f"- {question}")


if __name__ == "__main__":
    try:
        asyncio.run(main(" ".join(sys.argv[1:]) or "RSA"))
    except LLMError as error:
        sys.exit(str(error))
