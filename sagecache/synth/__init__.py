"""Rendered people with exact keypoints, depth, normals and masks: the embedded data of the demo."""
