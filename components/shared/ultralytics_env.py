"""Import this before ultralytics: it keeps the library to what it is asked for.

Left alone, ultralytics writes a settings file into the user's home, installs missing packages by itself, asks the
network whether it is there, logs to an MLflow run of its own beside ours and limits the process to one thread.
"""

import os
import tempfile
from pathlib import Path

from yolo_distill.components.shared.cores import usable_cores

if not os.environ.get("OMP_NUM_THREADS"):
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_OFFLINE", "true")
# Checkpoints are pickles: ultralytics then rebuilds only network classes that it knows.
os.environ.setdefault("ULTRALYTICS_SAFE_LOAD", "true")
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(tempfile.gettempdir()) / f"yolo-distill-{os.getuid()}"))
Path(os.environ["YOLO_CONFIG_DIR"]).mkdir(mode=0o700, parents=True, exist_ok=True)

from ultralytics.utils import SETTINGS  # noqa: E402

# dict.update leaves the settings file alone, where SETTINGS.update would write it.
dict.update(SETTINGS, {name: False for name, value in SETTINGS.items() if value is True and name != "hub"})
dict.update(SETTINGS, sync=False, hub=False)
