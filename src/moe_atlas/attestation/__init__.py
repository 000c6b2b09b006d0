"""A receipt as something a supply chain understands: an in-toto Statement over the tuned checkpoint. Torch-free."""
