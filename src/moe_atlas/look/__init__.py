"""A look at a pair without configuration: its documents, its probe set, what is certain in it."""
