"""One provider: check a request, write it with LiteLLM, send it and read the response."""
