"""What a terminal can hold: its width, and the progress of a long run."""
