"""Budgets from pairs whose fate is known, instead of guesses: read pairs, bound, write the policy. Torch-free."""
