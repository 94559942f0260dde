"""Generators of discrete image tokens: masked, discrete-flow and autoregressive."""
