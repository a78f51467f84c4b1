#!/usr/bin/env bash
# memcheck, racecheck, synccheck and initcheck of compute-sanitizer over tests/helpers/sanitizer_cases.py.
# Fails on any finding in a kernel of clipproj; what they say of torch's and cuBLAS' kernels stays in
# the logs. Needs a GPU, the CUDA kernels (setup.py build_ext --inplace) and some minutes:
#     tools/sanitizer.sh [LOG_FOLDER]       PYTHON=python3
# Each tensor is an allocation of its own, so that the tools see where it ends, and what was written.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
logs=${1:-$(mktemp -d)}
python=${PYTHON:-python3}
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
export PYTHONPATH=$PWD PYTORCH_NO_CUDA_MEMORY_CACHING=1
mkdir -p "$logs"

# Prints how often a tool names one of our kernels; fails when the cases themselves do.
findings() { # tool, log, arguments of the cases
  local tool=$1 log=$2
  shift 2
  "$sanitizer" --tool "$tool" --show-backtrace no --log-file "$log" \
    "$python" tests/helpers/sanitizer_cases.py "$@" >&2
  grep -c 'clipproj::' "$log" || true
}

seen=$(findings initcheck "$logs/canary.log" canary)
if [[ $seen == 0 ]]; then
  echo "initcheck missed a read of memory that nobody wrote: $logs/canary.log" >&2
  exit 1
fi
failed=0
for tool in memcheck racecheck synccheck initcheck; do
  count=$(findings "$tool" "$logs/$tool.log")
  echo "$tool: $count findings in clipproj's kernels ($SECONDS s)"
  if [[ $count != 0 ]]; then
    grep -m 20 -B 2 -A 4 'clipproj::' "$logs/$tool.log" >&2
    failed=1
  fi
done
exit $failed
