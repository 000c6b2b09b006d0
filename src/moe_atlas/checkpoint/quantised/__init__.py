"""Quantised tensors: how they are recognised from headers, and what each format's stored bytes mean.

`detect` and `encoding` do without torch; one module per format holds the pure functions on tensors, and
`decode` picks among them. Only weights are decoded: activations are never quantised in a replay.
"""
