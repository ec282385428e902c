"""Check the API page of the built site: every name of this package in a signature is a link.

    python tools/check_site.py

``make docs`` runs it. mkdocstrings shows a name without a link if the page does not describe it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

_PAGE: Final = Path(__file__).parents[1] / "site" / "api.html"
# A name of a module; an attribute of a class is described beside its class.
_UNLINKED: Final = re.compile(r'<span title="(learnflow\.llm(?:\.[a-z_]\w*)*\.[A-Z]\w*)">')


def main() -> int:
    """Print the names without a link. Return the exit code."""
    names = sorted(set(_UNLINKED.findall(_PAGE.read_text(encoding="utf-8"))))
    for name in names:
        print(f"{name} is on the API page, but not described. Add it to the last section of docs/api.md")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
