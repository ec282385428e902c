"""Run the commands, by ``python -m learnflow.llm`` or ``python learnflow/llm``.

The second form does not import the parent package ``learnflow``. In the application LearnFlow, importing that package
is slow, because it contains code of the application.
"""

import sys
from pathlib import Path
from types import ModuleType

if not __package__:  # python learnflow/llm
    _parent = Path(__file__).resolve().parent.parent
    sys.path.pop(0)  # remove this folder, because its modules would shadow other modules of the same name
    sys.modules["learnflow"] = ModuleType("learnflow")
    sys.modules["learnflow"].__path__ = [str(_parent)]

from learnflow.llm.cli import exit_on_interrupt


def main() -> int:
    """Run the command line. Return the exit code."""
    exit_on_interrupt()
    from learnflow.llm.cli.main import main as run  # noqa: PLC0415  # after exit_on_interrupt()

    return run()


if __name__ == "__main__":
    sys.exit(main())
