"""What a base tells without a tuned checkpoint: its yardstick, and its ladders of noise."""
