"""Test the programme's predictions on receipts of many pairs.

Torch-free.
"""
