"""The formats on disk, in both directions: schema, writers, targets, vector files, finished outputs."""
