"""The router: provider choice, failover, circuit breakers, and continuation of interrupted answers."""
