"""Typed read-only views of a receipt. JSON stays what is stored; a view only says what stands where."""
