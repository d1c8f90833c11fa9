"""Semi-supervised fine-tuning of top-down pose models on cached frozen targets."""

__version__ = "0.1.0"
