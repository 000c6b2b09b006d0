"""One module per way to say in config.json how tensors are quantised: from there and the headers to their parts."""
