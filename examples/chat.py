"""A chat in the terminal: it streams each answer and remembers the conversation.

    python examples/chat.py

The environment selects the model, for example LLM_PROVIDER=ollama. If nothing is set, a local server that runs
answers, else the embedded model (pip install xllamacpp). An empty line or Ctrl-D ends the chat.
"""

from contextlib import suppress
from typing import Any

from learnflow.llm import LLMError
from learnflow.llm.sync import get_provider


def chat() -> None:
    """Answer questions until the user enters an empty line."""
    turns: list[dict[str, Any]] = []
    with get_provider() as provider:
        while question := input("\nYou: "):
            turn = {"role": "user", "content": question}
            stream = provider.stream([*turns, turn], temperature=0)
            print("Model: ", end="")
            try:
                for piece in stream:
                    print(piece, end="", flush=True)
            except LLMError as error:  # the conversation goes on without this question
                print(f"\n{error}")
            else:
                turns += [turn, stream.completion.message()]
                print()


if __name__ == "__main__":
    with suppress(EOFError, KeyboardInterrupt):
        chat()
