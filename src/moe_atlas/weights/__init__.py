"""What the bytes of the two checkpoints say before any token is routed: the weights ledger and expert identity."""
