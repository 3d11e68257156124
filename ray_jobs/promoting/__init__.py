"""Deciding whether a scorer becomes champion: gates, shadow scoring, and the record of the decision."""
