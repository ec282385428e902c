"""Check the language of docstrings, comments and documents.

    python tools/check_language.py [FOLDER]

Prints the occurrences of some words per 10,000 words, without code: in the modules of the folder (``learnflow`` by
default), and in the English documents. Fails if a word exceeds its limit, if an identifier is in ``IDENTIFIERS``, or if
a sentence of the first pages or of scaling (``FIRST_PAGES``, in both languages) is longer than ``MAX_SENTENCE_WORDS``.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

# Limits for code per 10,000 words. Those for documents are twice as high.
LIMITS: Final = {"where": 15, "asked": 5, "said|says": 5, "told": 1, "nobody": 2, "whose": 3, "is none": 2}
WITHOUT_LIMIT: Final = ("if", "returns?", "response")  # usual words, printed for comparison
IDENTIFIERS: Final = {"told", "said", "asked", "kept", "found", "heard", "whole", "very", "each"}
DOCUMENTS: Final = ("*.md", "docs/**/*.md")
FIRST_PAGES: Final = ("README*.md", "docs/index*.md", "docs/quickstart*.md", "docs/scaling*.md")
MAX_SENTENCE_WORDS: Final = 25  # code in backquotes is one word
_CODE: Final = re.compile(r"```.*?```|``[^`]+``|`[^`]+`", re.DOTALL)
# Blocks of code and comments end a sentence, as a blank line, an item of a list and a cell of a table do.
_NO_PROSE: Final = re.compile(r"^```.*?^```$|<!--.*?-->", re.DOTALL | re.MULTILINE)
_LINK: Final = re.compile(r"!?\[([^]]*)\]\([^)]*\)")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])[*)»\"]*\s+|\n\s*\n|\n(?=\s*(?:[-#]|\d+\.) )|\||·")


def prose(path: Path) -> str:
    """Return the docstrings and comments of a module, or the text of a document."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        text = "\n".join([*docstrings, *(token.string for token in tokens if token.type == tokenize.COMMENT)])
    return _CODE.sub(" ", text).lower()


def rates(paths: Iterable[Path]) -> dict[str, float]:
    """Return the occurrences of each word per 10,000 words."""
    text = "\n".join(map(prose, paths))
    total = max(1, len(re.findall(r"[a-z']+", text)))
    return {word: 1e4 * len(re.findall(rf"\b(?:{word})\b", text)) / total for word in (*LIMITS, *WITHOUT_LIMIT)}


def bad_identifiers(path: Path) -> Iterator[str]:
    """Yield an error for each definition, argument, import and assignment with a forbidden name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                pass
            case ast.alias():
                name = node.asname or node.name
            case _:
                continue
        if name in IDENTIFIERS:
            yield f"{path}:{node.lineno}: the identifier {name!r} is too general. Name the value or the action"


def long_sentences(path: Path) -> Iterator[str]:
    """Yield an error for each sentence of a document that has too many words."""
    text = _NO_PROSE.sub("\n\n", path.read_text(encoding="utf-8"))
    text = _CODE.sub("code", _LINK.sub(r"\1", text))
    for sentence in _SENTENCE_END.split(text):
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        if len(words) > MAX_SENTENCE_WORDS:
            start = " ".join(words[:6])
            yield f"{path}: a sentence has {len(words)} words: {start} … Use at most {MAX_SENTENCE_WORDS}"


def main(root: Path) -> int:
    """Print the rates and the errors. Return 1 if there is an error."""
    modules = sorted(root.rglob("*.py"))
    documents = [path for pattern in DOCUMENTS for path in Path().glob(pattern) if not path.match("*.ru.md")]
    findings = [finding for module in modules for finding in bad_identifiers(module)]
    first_pages = sorted({path for pattern in FIRST_PAGES for path in Path().glob(pattern)})
    findings += [finding for page in first_pages for finding in long_sentences(page)]
    words = (*LIMITS, *WITHOUT_LIMIT)
    print("| per 10,000", *(word.replace("|", ", ") for word in words), sep=" | ", end=" |\n")
    for title, paths, factor in (("code", modules, 1), ("documents", documents, 2)):
        measured = rates(paths)
        print(f"| {title}", *(f"{measured[word]:.0f}" for word in words), sep=" | ", end=" |\n")
        for word, limit in LIMITS.items():
            if measured[word] > factor * limit:
                findings.append(
                    f"{title}: {word!r} exceeds {factor * limit} per 10,000 words. See docs/internals/development.md"
                )
    print(*findings, sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(Path(*sys.argv[1:2] or ["learnflow"])))
