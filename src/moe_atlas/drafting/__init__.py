"""Write a probe file from a checkpoint and documents: every choice follows from them, and its reason is a comment."""
