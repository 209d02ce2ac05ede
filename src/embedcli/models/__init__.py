"""From a model name to its files and inference settings: registry, resolution, files, configuration."""
