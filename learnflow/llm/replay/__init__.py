"""Recorded responses instead of servers: cassettes, the player that answers from them, and the recorder."""
