"""Targets, poses and predictions become pictures."""
