"""Speed and memory of the audit against transformers on the same work: `python -m scripts.bench`."""
