"""Where things are: pixel conventions, affine maps, sampling, heatmaps, depth. Knows no images, no nets."""
