"""Submitting a verb as a job of a cluster: its upload, its environment, its course."""
