"""What a registration says: what it binds, and what it can decide."""
