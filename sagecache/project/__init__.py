"""Projects: a folder of configs that says what the data is and how to train on it."""

from .project import Project, Requirement, embedded_project
from .recipe import Recipe
from .settings import DataSettings, SplitSettings

__all__ = ["DataSettings", "Project", "Recipe", "Requirement", "SplitSettings", "embedded_project"]
