"""Parameter names and legacy helpers of the reference."""
