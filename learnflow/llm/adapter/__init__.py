"""One provider: check a request, write it with LiteLLM's configuration, send it and read the response."""
