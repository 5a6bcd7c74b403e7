"""Which floating point type a network runs in fastest without harm."""

import torch


def fast_autocast_dtype(device: torch.device) -> torch.dtype:
    """Return the type for autocast on a device.

    Args:
        device: Where the network runs.

    Returns:
        ``torch.bfloat16`` where the hardware computes in it (a GPU that supports it, or a processor with AVX512-BF16 or
        AMX, where ultralytics would leave mixed precision off), else ``torch.float32``.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32
