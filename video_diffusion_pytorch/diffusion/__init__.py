"""The diffusion: from a clip to a loss, and from noise to a video."""
