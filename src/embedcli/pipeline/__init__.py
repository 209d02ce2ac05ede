"""One device's pipeline: preparation, batches, prefetch, metrics and calibration."""
