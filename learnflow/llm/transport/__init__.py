"""HTTP: the connections, the limits of time and size, and the parsers of what servers send.

The only packages that import httpx are this one and ``replay``.
"""
