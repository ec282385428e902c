"""``python -m learnflow.llm``, and ``python learnflow/llm``, which does not import the parent package.

The parent may be LearnFlow's own package. Its ``__init__`` loads the graph, which takes ten times as long as a command.
"""

import sys
from pathlib import Path
from types import ModuleType

if not __package__:  # started by its path
    _parent = Path(__file__).resolve().parent.parent
    sys.path.pop(0)  # the folder itself: its modules would hide others of the same names
    sys.modules["learnflow"] = ModuleType("learnflow")
    sys.modules["learnflow"].__path__ = [str(_parent)]

from learnflow.llm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
