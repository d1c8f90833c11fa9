"""What bodies may look like: cached geometry (CMGC) and labelled skeletons (the diffusion prior)."""
