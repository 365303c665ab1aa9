"""The step from a noisy video to the network's output."""
