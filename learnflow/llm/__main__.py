"""``python -m learnflow.llm``, where there is no console script."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
