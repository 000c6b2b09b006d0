"""Derive budgets from pairs known to be healthy: read pairs, bound their values, write the policy. Torch-free."""
