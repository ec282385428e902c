"""Several providers as one: who is asked next, what a failure means, how a broken answer is continued."""
