"""Learning without labels: pure functions and small modules over plain tensors; no mmpose, no prior."""
