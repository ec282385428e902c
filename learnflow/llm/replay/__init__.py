"""Cassettes (files of recorded responses), the recorder that writes them, and the player that replaces servers."""
