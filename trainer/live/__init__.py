"""Inputs whose encoder runs in the loop: their cells in memory, batches of them, and the module that makes vectors of them."""
