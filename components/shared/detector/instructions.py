"""Which of the processor's instructions OpenVINO's kernels use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "ONEDNN_MAX_CPU_ISA"
# The largest set of instructions that has no AMX.
WITHOUT_AMX = "AVX512_CORE_FP16"

# Below so many GFLOPs an image, AMX's tiles hold too little to be worth setting up. INT8 on one core of a 4th
# generation Xeon, with AMX and without: YOLOv8n at 320 px (2.2 GFLOPs) 13.3 and 8.9 ms, at 512 px (5.6) 18.6 and
# 19.0 ms, YOLOv8s at 640 px (29) 47 and 70 ms.
_AMX_PAYS_FROM_GFLOPS = 5.0


@contextmanager
def suited_instructions(gflops: float) -> Iterator[None]:
    """Let OpenVINO do without AMX where a network is too small for it.

    OpenVINO's kernels look once in a process, when its first model is opened: in the block, or in a process that is
    started there. Layers in float32 have no use for AMX and run as ever; so do all on processors without it. What the
    user has set stays.

    Args:
        gflops: Cost of one image in 10^9 floating point operations.
    """
    if gflops >= _AMX_PAYS_FROM_GFLOPS or VARIABLE in os.environ:
        yield
        return
    os.environ[VARIABLE] = WITHOUT_AMX
    try:
        yield
    finally:
        del os.environ[VARIABLE]
