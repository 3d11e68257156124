"""The crops dataset: its form on disk, how it is built from labelled material, and what is found out about it."""
