#!/usr/bin/env bash
# Builds the wheels and tries them where there is nothing else: no TVM, no compiler, no checkout.
#
#   release/try_wheels.sh [PYTHON ...]       default: python3
#
# The python on PATH builds: it has tvm-flash[compile] and ziglang. Each PYTHON gets an environment of its
# own with $TORCH (default torch==2.13.0; "system": that of its distribution, as in a chroot) and the
# wheels. $DIST: where the wheels go, and stay.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
dist=${DIST:-$scratch/dist}
torch=${TORCH:-torch==2.13.0}
pythons=("${@:-python3}")
build=$(command -v python)

# Building in a checkout leaves folders behind: of a copy.
mkdir "$scratch/tree"
git -C "$here/.." ls-files -co --exclude-standard -z |
  tar -C "$here/.." --null --files-from=- --create --file=- | tar -C "$scratch/tree" --extract --file=-
"$build" -m pip wheel --quiet --no-deps --wheel-dir "$dist" "$scratch/tree"

(
  cd "$scratch"
  export PYTHONPATH="$scratch/tree"
  # Two packages, which one process uses both.
  "$build" -m tvm_flash build fp32,d=64,causal --buckets long --wheel -o "$dist"
  "$build" -m tvm_flash build fp32,d=32 --forward-only --buckets long --target llvm --wheel \
    --name tvm-flash-kernels-more -o "$dist"
  "$build" -m tvm_flash build fp32,d=64,causal --buckets long --target llvm --kernels-repo -o repo
)
"$build" -m auditwheel show "$dist"/tvm_flash_kernels-*.whl || echo "auditwheel is not installed"

for python in "${pythons[@]}"; do
  venv=$scratch/venv-$(basename "$python")-$RANDOM
  if [ "$torch" = system ]; then
    "$python" -m venv --system-site-packages "$venv"
    "$venv/bin/python" -m pip install --quiet --no-deps apache-tvm-ffi==0.1.14.post1 "$dist"/*.whl
  else
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet "$torch" "$dist"/*.whl
  fi
  # Nothing on PATH: no compiler.
  (cd / && env -i HOME="$scratch" PATH=/nonexistent "$venv/bin/python" -I "$here/try_installed.py")
  if "$venv/bin/python" -m pip install --quiet "kernels>=0.17"; then
    (cd / && env -i HOME="$scratch" PATH=/nonexistent "$venv/bin/python" -I \
      "$here/try_repository.py" "$scratch/repo")
  else
    echo "kernels cannot be installed here: the repository was not tried"
  fi
done
