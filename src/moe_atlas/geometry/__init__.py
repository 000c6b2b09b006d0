"""The routed object of one layer, read from two checkpoints: what is measured, token by token.

Every function here is pure: tensors of one batch in, one value per token out. Windows, intervals and
verdicts are somebody else's business.

Shape legend used throughout: W windows, S tokens per window, T tokens (W·S), D model width, H expert
width, E experts, K top-k, G expert groups, P evaluated experts per token, V vocabulary.
"""
