"""Turn a receipt into an in-toto Statement over the tuned checkpoint, for supply-chain tools. Torch-free."""
