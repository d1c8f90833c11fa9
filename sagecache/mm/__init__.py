"""The only room that imports mmpose: training, evaluation and export on mmengine's Runner."""
