"""Many searches as one run: a grid, a folder for each, workers that share them."""
