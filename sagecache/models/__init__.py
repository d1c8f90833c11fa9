"""Small networks of the demo project and their committed weights."""

from sagecache.models.convnet import GeometryMaps, GeometryNet, PersonDetector, PoseNet
from sagecache.models.weights import load_weights

__all__ = ["GeometryMaps", "GeometryNet", "PersonDetector", "PoseNet", "load_weights"]
