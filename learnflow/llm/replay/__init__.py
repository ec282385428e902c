"""Recorded answers instead of servers: cassettes, the player that answers from them, the recorder that makes them."""
