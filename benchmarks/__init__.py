"""Measured figures, side by side with torchrun in one run: `make bench`. Never part of the tests."""
