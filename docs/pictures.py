"""Draw docs/status.svg and docs/check.svg: what the commands print, with llama.cpp and the tiny model of the tests.

PYTHONPATH=tests:tests/llamacpp python docs/pictures.py
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import llama
from rich.console import Console
from rich.text import Text

_DOCS: Final = Path(__file__).parents[1] / "docs"
_COLUMNS: Final = 84
# Fonts from the network, clip paths that cut nothing off, and a comment.
_UNUSED: Final = re.compile(
    r'@font-face \{.*?\}|Fira Code, |<defs>.*?</defs>| clip-path="[^"]*"|^ *<!--.*?-->\n', re.DOTALL | re.MULTILINE
)
_ADDRESS: Final = "http://localhost:8080"


def _draw(file: Path, command: str, server: llama.LlamaServer) -> None:
    """Run a command, and write its output with its colours as a picture."""
    program, *words = command.split()
    variables = {
        "LLM_PROVIDERS": "llamacpp,embedded,openai",
        "LLAMACPP_BASE_URL": server.url,
        "LLAMACPP_API_KEY": server.key,
        "FORCE_COLOR": "1",
        "COLUMNS": str(_COLUMNS),
    }
    python = [sys.executable, "-m", "learnflow.llm", *words]
    printed = subprocess.run(python, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=False).stdout
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    console.print(Text.from_ansi(printed.replace(server.url, _ADDRESS).rstrip("\n")))
    lines = _UNUSED.sub("", console.export_svg(title=program)).splitlines()
    file.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    with llama.LlamaServer() as running:
        _draw(_DOCS / "status.svg", "learnflow-llm status", running)
        _draw(_DOCS / "check.svg", "learnflow-llm check -p llamacpp", running)
