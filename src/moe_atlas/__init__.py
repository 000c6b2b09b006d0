"""Audit a pair of Mixture-of-Experts checkpoints: is the tuned one still the same routed object?"""

__version__ = "0.1.0"
