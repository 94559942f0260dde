"""VBench (Huang et al. 2024): its dimensions, computed natively or by the official package."""
