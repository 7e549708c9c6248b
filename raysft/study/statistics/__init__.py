"""Tests and intervals that know gains are clustered by model and by dataset, and how many were made."""
