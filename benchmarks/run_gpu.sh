#!/usr/bin/env bash
# Everything that a machine with a GPU can say about the kernels, in one command and under ten minutes, without a network.
#
#   bash benchmarks/run_gpu.sh OUT [PEERS]             PEERS: the folder of peers that bench_kernels --peers takes
#   bash benchmarks/run_gpu.sh --dry-run OUT [PEERS]   prints what it would run
#
# Builds for the GPU's architecture, in place; runs the kernel tests on it; compute-sanitizer on small shapes; the tuner; and
# the benchmarks. Each part has its own time limit, and none stops those after it. OUT gets at most 8 files, none over 16 MB:
#
#   summary.txt     what every part came to, last in the output too
#   build.log tests.log sanitizer.log benchmarks.log
#   kernels.json kernels-bfloat16.png                  from benchmarks/bench_kernels.py
#   tuned.json                                         from benchmarks/tune_gemm.py
#
# Needs python3 with torch for CUDA, nvcc, ninja, g++ and pytest; says which is missing. TINYSERVE_COMMIT names the commit
# in the results where there is no git. Ends with 0 only if every part did well.
set -uo pipefail

dry_run=
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=1
  shift
fi
if [[ $# -lt 1 || $# -gt 2 || "$1" == -* ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
peers=
if [[ $# -eq 2 ]]; then
  if [[ ! -d "$2" ]]; then
    echo "run_gpu.sh: no folder of peers at $2" >&2
    exit 2
  fi
  peers=$(cd "$2" && pwd)
fi
cd "$root" || exit 2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

total_limit=${TINYSERVE_GPU_SECONDS:-585} # for everything
max_file_bytes=$((15 * 1024 * 1024))
verdicts=() # a line for each part
failed=0

say() { printf '%s\n' "$*"; }
left() { echo $((total_limit - SECONDS)); }

# part NAME LIMIT LOG COMMAND... — runs the command for at most LIMIT seconds, and adds its output to LOG
part() {
  local name=$1 limit=$2 log=$out/$3 start=$SECONDS status word
  shift 3
  if (($(left) < limit)); then limit=$(left); fi
  say "== $name (at most $limit s): $*"
  if [[ -n $dry_run ]]; then return 0; fi
  if ((limit < 5)); then
    verdicts+=("NO TIME   $name")
    failed=1
    return 1
  fi
  say "== $name: $*" >>"$log"
  timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$log" 2>&1
  status=$?
  case $status in
    0) word=OK ;;
    124 | 137) word="TIMED OUT" ;;
    *) word="FAILED" ;;
  esac
  if ((status != 0)); then
    failed=1
    say "-- the end of $log:"
    tail -n 15 "$log"
  fi
  verdicts+=("$(printf '%-9s %s (%d s, exit code %d)' "$word" "$name" $((SECONDS - start)) "$status")")
  return "$status"
}

skip() { # NAME WHY
  say "== $1: skipped, $2"
  verdicts+=("SKIPPED   $1: $2")
  failed=1
}

# What must be there, each by a name that says what to do about it.
missing=()
for place in /usr/local/cuda/bin; do
  if ! command -v nvcc >/dev/null && [[ -x $place/nvcc ]]; then PATH=$PATH:$place; fi
done
command -v "$python" >/dev/null || missing+=("python3")
command -v nvcc >/dev/null || missing+=("nvcc (the CUDA toolkit; or put its bin folder on PATH)")
command -v g++ >/dev/null || command -v "${CXX:-g++}" >/dev/null || missing+=("g++")
command -v timeout >/dev/null || missing+=("timeout (coreutils)")
capability=
if ! command -v nvidia-smi >/dev/null; then
  missing+=("nvidia-smi (the GPU's driver)")
elif ! capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader -i 0 2>&1); then
  missing+=("a GPU that nvidia-smi sees: $capability")
  capability=
elif [[ ! $capability =~ ^[0-9]+\.[0-9]+$ ]]; then
  missing+=("a compute capability from nvidia-smi: it said \"$capability\"")
  capability=
fi
for module in torch ninja pytest setuptools numpy; do
  if command -v "$python" >/dev/null && ! "$python" -c "import $module" 2>"$scratch/import"; then
    [[ $module == ninja ]] && command -v ninja >/dev/null && continue
    missing+=("the Python package $module: $(tail -n 1 "$scratch/import")")
  fi
done
if command -v "$python" >/dev/null && ! headers=$("$python" -c "
import pathlib, sysconfig
header = pathlib.Path(sysconfig.get_paths()['include'], 'Python.h')
print(header)
raise SystemExit(not header.exists())"); then
  missing+=("Python's headers, $headers (the package python3-dev)")
fi
if ((${#missing[@]} == 0)) && ! "$python" -c 'import torch; torch.zeros(1, device="cuda")' 2>"$scratch/import"; then
  missing+=("a build of torch that runs on this GPU: $(tail -n 1 "$scratch/import")")
fi
if ((${#missing[@]})); then
  say "run_gpu.sh: this machine lacks:"
  printf '  - %s\n' "${missing[@]}"
  if [[ -z $dry_run ]]; then exit 3; fi
fi

arch=${capability/./}
if [[ $arch == 90 ]]; then arch=90a; fi # Hopper's own instructions
export TINYSERVE_CUDA_ARCHS=${arch:-90a}

facts() {
  date --utc
  echo "commit ${TINYSERVE_COMMIT:-$(git describe --always --dirty 2>/dev/null)}"
  nvidia-smi
  nvcc --version
  "$python" --version
  "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, torch.cuda.get_device_name())'
  uname -a
  nproc
}

say "GPU of capability ${capability:-unknown}, building for sm_$TINYSERVE_CUDA_ARCHS; results in $out"
if [[ -z $dry_run ]]; then
  rm -f "$out"/{summary.txt,build.log,tests.log,sanitizer.log,benchmarks.log,tuned.json} "$out"/kernels*.{json,png}
  facts >"$out/summary.txt" 2>&1
fi

if part build 150 build.log "$python" setup.py build_ext --inplace || [[ -n $dry_run ]]; then
  if [[ -z $dry_run ]]; then "$python" tests/ptxas_log.py >>"$out/build.log" 2>&1; fi

  # The project's own settings name plugins that need not be here.
  printf '[pytest]\naddopts = --import-mode=importlib\npythonpath = %s %s/tests\n' "$root" "$root" >"$scratch/pytest.ini"
  options=(-c "$scratch/pytest.ini" --rootdir "$root" -p no:cacheprovider -q -ra --durations=5)
  if "$python" -c 'import xdist' 2>/dev/null; then options+=(-n 8); fi
  if "$python" -c 'import pytest_timeout' 2>/dev/null; then options+=(--timeout=60); fi
  part tests 120 tests.log "$python" -m pytest "${options[@]}" -k cuda tests/kernels/test_w4a16_*.py tests/kernels

  # Without the caching allocator, so that each tensor ends where its memory does.
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
      part "sanitizer, $tool" 45 sanitizer.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 "$python" -m benchmarks.sanitized_kernels
    done
  else
    skip sanitizer "compute-sanitizer is not on PATH"
  fi

  part tuner 75 benchmarks.log "$python" -m benchmarks.tune_gemm --models Llama-3-8B Llama-3-70B \
    --rows 16 32 64 128 256 512 1024 --dtype bfloat16 --out "$out/tuned.json"
  if [[ -s $out/tuned.json ]]; then export TINYSERVE_GEMM_TABLE=$out/tuned.json; fi
  limit=$(($(left) - 25))
  part benchmarks "$((limit + 15))" benchmarks.log "$python" -m benchmarks.bench_kernels --quick \
    --time-limit "$limit" --out "$out/kernels.json" ${peers:+--peers "$peers"}
elif [[ -z $dry_run ]]; then
  skip "tests, sanitizer, tuner, benchmarks" "nothing was built"
fi
if [[ -n $dry_run ]]; then exit 0; fi

{
  echo "== parts"
  printf '%s\n' "${verdicts[@]}"
  echo "== tests"
  tail -n 1 "$out/tests.log"
  echo "== compute-sanitizer"
  grep -hE '^== sanitizer|ERROR SUMMARY|RACECHECK SUMMARY' "$out/sanitizer.log"
  echo "== benchmarks"
  grep -hE '^(PASS|MISS|NOT MEASURED|missing:|failed:|INCOMPLETE)|copy [0-9]+ GB/s' "$out/benchmarks.log"
  echo "== $SECONDS s in all"
} >>"$out/summary.txt" 2>/dev/null
for file in "$out"/*.log; do
  if (($(stat -c %s "$file") > max_file_bytes)); then # both ends say more than either
    { head -c $((max_file_bytes / 2)) "$file"; echo "[... cut]"; tail -c $((max_file_bytes / 2)) "$file"; } >"$scratch/cut"
    mv "$scratch/cut" "$file"
  fi
done
cat "$out/summary.txt"
exit "$failed"
