"""Kubeflow Pipelines components that turn a large YOLOv8 detector into a small, fast one."""
