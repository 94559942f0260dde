"""Rewriters of prompts: one module each."""
