"""GenEval (Ghosh et al. 2023): prompts, detector, layout and report of the published protocol."""
