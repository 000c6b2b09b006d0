"""Where an audited pair lost: documents, tokens and routes by name. Torch-free; no verdict rests on it."""
