"""HTTP: connections, time and size limits, and parsers of responses.

Only this package and ``replay`` import httpx.
"""
