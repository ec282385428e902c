"""HTTP: connections, time and size limits, and parsers of responses."""
