"""Import this before openvino or nncf: both would otherwise report their use over the network, with nobody asked."""

import sys

# Both do without this package where it cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
