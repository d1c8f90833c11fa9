"""What bodies may look like: cached geometry (CMGC) and labeled skeletons (the diffusion prior)."""
