"""The command line: `learnflow-llm` and its commands."""
