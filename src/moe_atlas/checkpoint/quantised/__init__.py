"""Quantised tensors: recognise them from headers, and decode the bytes of each format.

`encoding` and the readers import no torch. One module per format holds the pure functions on tensors, and `decode`
picks among them. Only weights are decoded: a replay never quantises activations.
"""
