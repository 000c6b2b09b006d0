"""Does the atlas earn its keep? Receipts of many pairs against the ways in which its premises could fail.

Torch-free.
"""
