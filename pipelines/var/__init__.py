"""Visual autoregressive models: Infinity and VAR, and their sampler."""
