"""Which container image each kind of step runs in.

A registry or a digest is chosen when the pipeline is compiled, by environment variable, so that no address is written
into the code. On this machine tasks are processes of the environment that the program was started from, unless it
is asked for containers.
"""

import os

CPU_IMAGE = os.environ.get("YOLO_DISTILL_CPU_IMAGE", "localhost/yolo-distill-python:0.1.0-cpu")
TRAIN_IMAGE = os.environ.get("YOLO_DISTILL_TRAIN_IMAGE", "localhost/yolo-distill-python:0.1.0-cuda")
TENSORRT_IMAGE = os.environ.get("YOLO_DISTILL_TENSORRT_IMAGE", "localhost/yolo-distill-python:0.1.0-tensorrt")
