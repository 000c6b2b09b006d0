"""Small MoEs trained on this machine: text, task, model, optimiser, loops and checkpoints of the demo and the lab."""
