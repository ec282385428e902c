"""Several providers as one: which one is next, what a failure means, when a broken answer is continued."""
