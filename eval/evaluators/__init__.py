"""Evaluators: one module for each benchmark, found by name."""
