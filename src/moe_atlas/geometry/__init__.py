"""Measurements of the routed object of one layer, token by token, for one checkpoint or a pair.

The functions are pure: they take tensors of one batch and return one value per token. Other packages handle windows,
intervals and verdicts.

Legend used throughout: W windows, S tokens per window, T tokens (W·S), D model width, H hidden width of an expert, E
experts, K top-k, G expert groups, P evaluated experts per token, V vocabulary.
"""
