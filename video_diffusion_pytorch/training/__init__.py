"""The loop around model and diffusion: batches, steps, averages, checkpoints."""
