"""The diffusion developmental prior: a small denoiser over the labeled split's skeletons."""

kind = "prior"
data = dict(labeled="labeled")
prior = dict()
