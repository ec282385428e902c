"""One provider: a checked request, written by LiteLLM's configuration, sent and read by ``transport``."""
