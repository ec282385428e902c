"""``python -m learnflow.llm``; and ``python learnflow/llm``, which does not import the package around the folder.

That package may be LearnFlow's own, whose ``__init__`` loads its whole graph: ten times as long as the command needs.
"""

import sys
from pathlib import Path
from types import ModuleType

if not __package__:  # started by its path
    _around = Path(__file__).resolve().parent.parent
    sys.path.pop(0)  # the folder itself, whose modules would hide others of the same names
    sys.modules["learnflow"] = ModuleType("learnflow")
    sys.modules["learnflow"].__path__ = [str(_around)]

from learnflow.llm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
