#!/usr/bin/env bash
# What a machine with a GPU can say about this project, in three calls of under ten minutes, without a network.
#
#   bash benchmarks/run_gpu.sh kernels OUT [PEERS]      tests of all kernels, compute-sanitizer, tuner, bench_kernels
#   bash benchmarks/run_gpu.sh attention OUT [PEERS]    tests of layers and models, bench_attention
#   bash benchmarks/run_gpu.sh decode OUT [PEERS]       tests of the engine, bench_decode_gpu with one token drawn
#   bash benchmarks/run_gpu.sh all OUT [PEERS]          the three one after another, each in a folder of OUT
#   bash benchmarks/run_gpu.sh --dry-run PART OUT [PEERS]     prints what it would run
#
# PEERS: the folder of peers that bench_kernels and bench_attention take with --peers. Where the machine lacks a package
# without which there is no engine, llguidance, its wheel is used from there.
#
# Each call builds for the GPU's architecture, in place. What a call before has built is found again where the ignored
# files of the tree (build/, tinyserve/*.so) are still there; nothing else is needed for that. So is the tuner's table,
# build/gemm-table.json, by which the products of the other two calls choose. In a call each part has a time limit of
# its own, and none stops those after it. OUT (with all: each folder in it) gets at most 8 files, none over 16 MB:
#
#   summary.txt     what every part came to, last in the output too
#   build.log tests.log benchmarks.log, and of kernels sanitizer.log
#   kernels.json kernels-bfloat16.png tuned.json       from benchmarks/bench_kernels.py and tune_gemm.py
#   attention.json attention.png                       from benchmarks/bench_attention.py
#   decode.json decode-timeline.png                    from benchmarks/bench_decode_gpu.py
#
# Needs python3 with torch for CUDA, nvcc, ninja, g++ and pytest; says which is missing. TINYSERVE_COMMIT names the
# commit in the results where there is no git. Ends with 0 only if every part did well.
set -uo pipefail

dry_run=
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=1
  shift
fi
if [[ $# -lt 2 || $# -gt 3 || ! "$1" =~ ^(kernels|attention|decode|all)$ ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
  exit 2
fi
what=$1
shift

if [[ $what == all ]]; then
  out=$1
  shift
  failed=0
  for each in kernels attention decode; do
    bash "$0" ${dry_run:+--dry-run} "$each" "$out/$each" "$@" || failed=$?
  done
  exit "$failed"
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
    5) word="NO TESTS" ;; # what pytest says where it was to run none
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
modules=(torch ninja pytest setuptools numpy)
if [[ $what != kernels ]]; then
  modules+=(transformers llguidance)
  wheel=$(compgen -G "${peers:-/nowhere}/llguidance-*.whl" | head -n 1)
  if [[ -n $wheel ]] && command -v "$python" >/dev/null && ! "$python" -c 'import llguidance' 2>/dev/null; then
    "$python" -m zipfile -e "$wheel" "$scratch/site" && PYTHONPATH=$PYTHONPATH:$scratch/site
  fi
fi
for module in "${modules[@]}"; do
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
  rm -f "$out"/{summary.txt,build.log,tests.log,sanitizer.log,benchmarks.log,tuned.json}
  rm -f "$out"/{kernels,attention,decode}*.{json,png}
  facts >"$out/summary.txt" 2>&1
fi

table=$root/build/gemm-table.json # ignored by git: it stays with the build

# The project's own settings name plugins that need not be here.
printf '[pytest]\naddopts = --import-mode=importlib\npythonpath = %s %s/tests\n' "$root" "$root" >"$scratch/pytest.ini"
pytest=("$python" -m pytest -c "$scratch/pytest.ini" --rootdir "$root" -p no:cacheprovider -q -ra --durations=5)
if "$python" -c 'import xdist' 2>/dev/null; then pytest+=(-n 8); fi
if "$python" -c 'import pytest_timeout' 2>/dev/null; then pytest+=(--timeout=60); fi
pytest+=(-k cuda)

gpu_tests() { # NAME LIMIT FOLDERS... — of the files that have such tests: others may need what is not here
  local name=$1 limit=$2 files=() file
  shift 2
  while read -r file; do files+=("$file"); done < <(grep -rl --include='test_*.py' cuda "$@" 2>/dev/null | sort)
  if ((${#files[@]} == 0)); then
    skip "$name" "none of them is for a GPU"
  else
    part "$name" "$limit" tests.log "${pytest[@]}" "${files[@]}"
  fi
}

benchmark() { # NAME MODULE ARGUMENTS... — in the time that is left, and a little less than that by its own clock
  local name=$1 module=$2 limit=$(($(left) - 25))
  shift 2
  part "$name" "$((limit + 15))" benchmarks.log "$python" -m "benchmarks.$module" --time-limit "$limit" "$@"
}

run_kernels() {
  part tests 100 tests.log "${pytest[@]}" tests/kernels/test_w4a16_*.py tests/kernels

  # Without the caching allocator, so that each tensor ends where its memory does.
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
      part "sanitizer, $tool" 40 sanitizer.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 "$python" -m benchmarks.sanitized_kernels
    done
  else
    skip sanitizer "compute-sanitizer is not on PATH"
  fi

  part tuner 65 benchmarks.log "$python" -m benchmarks.tune_gemm --models Llama-3-8B Llama-3-70B \
    --rows 16 32 64 128 256 512 1024 --dtype bfloat16 --out "$out/tuned.json"
  if [[ -s $out/tuned.json ]]; then
    mkdir -p "${table%/*}" && cp "$out/tuned.json" "$table"
    export TINYSERVE_GEMM_TABLE=$out/tuned.json
  fi
  benchmark benchmarks bench_kernels --quick --out "$out/kernels.json" ${peers:+--peers "$peers"}
}

run_attention() {
  gpu_tests "tests of layers and models" 120 tests/layers tests/models
  benchmark benchmarks bench_attention --quick --out "$out/attention.json" ${peers:+--peers "$peers"}
}

run_decode() {
  gpu_tests "tests of the engine" 120 tests/engine
  benchmark benchmarks bench_decode_gpu --trace llama-3-8b --out "$out/decode.json"
}

if part build 180 build.log "$python" setup.py build_ext --inplace || [[ -n $dry_run ]]; then
  if [[ -z $dry_run ]]; then "$python" tests/ptxas_log.py >>"$out/build.log" 2>&1; fi
  if [[ $what != kernels && -s $table ]]; then
    export TINYSERVE_GEMM_TABLE=$table
    say "== products of 4-bit weights by $table"
  fi
  "run_$what"
elif [[ -z $dry_run ]]; then
  skip "all after it" "nothing was built"
fi
if [[ -n $dry_run ]]; then exit 0; fi

{
  echo "== parts"
  printf '%s\n' "${verdicts[@]}"
  echo "== tests"
  tail -n 1 "$out/tests.log"
  [[ -f $out/sanitizer.log ]] && echo "== compute-sanitizer"
  grep -hE '^== sanitizer|ERROR SUMMARY|RACECHECK SUMMARY' "$out/sanitizer.log"
  echo "== benchmarks"
  grep -hE '^(PASS|MISS|NOT MEASURED|missing:|failed:|INCOMPLETE)|copy [0-9]+ GB/s|^one token|^  layer  ' \
    "$out/benchmarks.log"
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
