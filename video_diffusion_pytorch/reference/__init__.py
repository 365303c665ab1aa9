"""What only the reference's users need: its parameter names and its legacy helpers."""
