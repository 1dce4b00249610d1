"""Presets, data sets, training loop and plots behind ``gatkernels train``."""
