"""Projects: a folder of configs that says what the data is and how to train on it."""

from sagecache.project.project import Project, Requirement, embedded_project
from sagecache.project.recipe import Recipe
from sagecache.project.settings import DataSettings, SplitSettings

__all__ = ["DataSettings", "Project", "Recipe", "Requirement", "SplitSettings", "embedded_project"]
