"""Keeps what libraries like to write into the home folder inside the checkout, and the tiny tier off the network.

Set for this process and the kernels it starts; what the user has set already is left alone.
"""

from __future__ import annotations

import os
import sys

from holitom_repro import paths

FOLDERS = {
    "HF_HOME": "huggingface",
    "XDG_CACHE_HOME": "xdg",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "NUMBA_CACHE_DIR": "numba",
    "MPLCONFIGDIR": "matplotlib",
    "IPYTHONDIR": "ipython",
    "npm_config_cache": "npm",  # JupyterLab's language server support asks npm where it is installed
    "JUPYTER_CONFIG_DIR": "jupyter/config",
    "JUPYTER_DATA_DIR": "jupyter/data",
    "JUPYTER_RUNTIME_DIR": "jupyter/runtime",
}
QUIET = {
    "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel "python3" of this environment before one in the home folder
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
OURS = "HOLITOM_TINY_OFFLINE"
"""Stands beside them when it was the tiny tier that closed the hub, and not the user."""


def keep_inside(tier: str | None = None) -> None:
    """Point every cache below runs/cache; in the tiny tier also forbid the model hub, which it never needs.

    Must run before the libraries are imported: they read these variables once.
    """
    for variable, folder in FOLDERS.items():
        if variable not in os.environ:
            place = paths.runs("cache", folder)
            place.mkdir(parents=True, exist_ok=True)
            os.environ[variable] = str(place)
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    if "matplotlib" not in sys.modules:
        os.environ.setdefault("MPLBACKEND", "Agg")
    if tier == "tiny":
        if not any(os.environ.get(variable) for variable in OFFLINE):
            os.environ[OURS] = "1"
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
