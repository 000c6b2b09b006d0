"""The demo: train a small DeepSeek-V3-shaped MoE on this machine and audit two tunes of it."""
