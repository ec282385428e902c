"""A chat in the terminal: it streams each answer and remembers the conversation.

    python examples/chat.py

The environment selects the model, for example LLM_PROVIDER=ollama. If nothing is set, a local server that runs
answers, else the embedded model (pip install xllamacpp). An empty line or Ctrl-D ends the chat.
"""

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
            label = "Model: "
            try:
                for piece in stream:
                    print(label + piece, end="", flush=True)
                    label = ""
            except LLMError as error:  # the conversation goes on without this question
                print(f"{label}\n{error}")
            else:
                turns += [turn, stream.completion.message()]
                print()


if __name__ == "__main__":
    try:
        chat()
    except (EOFError, KeyboardInterrupt):
        print()
