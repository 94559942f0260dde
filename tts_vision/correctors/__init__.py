"""Correctors of rejected samples: one module each."""
