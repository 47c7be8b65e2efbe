#!/usr/bin/env bash
# `tvm-flash bench --suite gpu` on a GPU that is lent for minutes: built here, run there.
#
#   release/try_gpu.sh build sm_90a FOLDER      where TVM and nvcc are: all that travels goes into FOLDER
#   FOLDER/try_gpu.sh run [SECONDS]             there: torch's CUDA build is all it needs (default: 540 s)
#
# sm_90a: H100 and H200, with the kernels of docs/hopper.md; sm_90: without them; sm_80: A100, and so on.
# `build` takes minutes. The python on PATH builds. $PYTHON: the Python there, as in 3.12; default: that of the
# python on PATH. $KERNELS: what is built, as `tvm-flash build` takes it. $SPECS, $TRIALS: what is tuned, and
# through how many configs. `run` writes FOLDER/results as it goes, and goes on there when it is called again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

build() {
  local arch=$1 folder=$2 kernels specs
  read -ra kernels <<<"${KERNELS:---preset benchmark}"
  read -ra specs <<<"${SPECS:-bf16,d=128,causal bf16,d=64,causal}"
  mkdir -p "$folder/tree"
  folder=$(cd "$folder" && pwd)
  export PYTHONPATH=$here/..
  # Wheels first: they are what may fail.
  python -m pip download --quiet --only-binary=:all: --dest "$folder/wheels" \
    --python-version "${PYTHON:-$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')}" \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
    "apache-tvm-ffi==$(python -c 'import tvm_ffi; print(tvm_ffi.__version__)')" typer rich
  python -m tvm_flash build "${kernels[@]}" --target "cuda:$arch" -o "$folder/kernels"
  python -m tvm_flash tune "${specs[@]}" --target "cuda:$arch" --trials "${TRIALS:-8}" \
    --carry "$folder/candidates"
  git -C "$here/.." ls-files -z -- tvm_flash schedules codegen tuning_logs |
    tar -C "$here/.." --null --files-from=- --create --file=- | tar -C "$folder/tree" --extract --file=-
  cp "$here/try_gpu.sh" "$folder/"
  du -sh "$folder"
  echo "carry it to such a GPU, then: $(basename "$folder")/try_gpu.sh run"
}

run() {
  python3 -c 'import torch' || { echo "error: $(command -v python3) has no torch: put one that has on PATH" >&2; exit 2; }
  # Whole or not at all: what was stopped halfway is begun again.
  if [ ! -d "$here/site" ]; then
    rm -rf "$here/site.part"
    python3 -m pip install --quiet --no-index --find-links "$here/wheels" \
      --target "$here/site.part" apache-tvm-ffi typer rich ||
      { echo "error: FOLDER/wheels are of another Python: build with PYTHON=$(python3 -c \
        'import sys; print("%d.%d" % sys.version_info[:2])')" >&2; exit 2; }
    mv "$here/site.part" "$here/site"
  fi
  export PYTHONPATH=$here/tree:$here/site
  mkdir -p "$here/results"
  python3 -m tvm_flash bench --suite gpu --artifact "$here/kernels" --candidates "$here/candidates" \
    --out "$here/results/gpu.json" --logs "$here/results/records" --budget "${1:-540}"
}

case "${1:-}" in
  build) build "${2:?an architecture, as sm_90}" "${3:?a folder}" ;;
  run) run "${2:-}" ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
