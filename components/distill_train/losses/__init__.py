"""Distillation losses, one file a method, as pure functions on what student and teacher say at points or in maps."""
