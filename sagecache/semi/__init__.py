"""Learning without labels: pure functions and small modules over plain tensors. Knows no mmpose and no prior."""
