"""What several steps share: errors, files, model cards, detectors and lineage."""
