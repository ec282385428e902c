"""A cloud with a private fallback: if the cloud fails, even in the middle of an answer, this machine continues it.

    OPENAI_API_KEY=... OPENAI_MODEL=gpt-6-luna python examples/private_fallback.py "Explain RSA encryption"

With LLM_LOCAL_ONLY=true the cloud gets no request: the text stays on this machine. The fallback is the embedded
model (pip install xllamacpp); any other provider works, too, for example "ollama".
"""

import asyncio
import sys

from learnflow.llm import Failover, Finished, LLMError, RouterProvider, TextDelta


async def main(question: str) -> None:
    """Print the answer as it arrives, and the name of each provider that takes part."""
    async with RouterProvider(primary="openai", fallback=["embedded"]) as chain:
        async for event in chain.stream(question, temperature=0).events():
            match event:
                case TextDelta(text):
                    print(text, end="", flush=True)
                case Failover(before, after, error):
                    print(f"[{before}: {type(error).__name__}; {after} continues]", file=sys.stderr)
                case Finished(done):
                    print(f"\n\n{done.provider} ended the answer, attempts: {done.attempts}, finish: {done.finish}.")


if __name__ == "__main__":
    try:
        asyncio.run(main(" ".join(sys.argv[1:]) or "Explain RSA encryption"))
    except LLMError as error:
        sys.exit(str(error))
