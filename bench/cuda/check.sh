#!/usr/bin/env bash
# Builds, checks and times the CUDA engine on a machine with a GPU, in one call:
#   bench/cuda/check.sh [PART…]        parts, in this order whatever the order they are named in:
#     tests      every native test, a process each
#     sanitize   compute-sanitizer: memcheck, racecheck, synccheck, initcheck, beside one another
#     prewarm    PyTorch's compilations into its caches, beside tests and sanitize
#     smoke      from JavaScript: train, save; and transformers opens what was saved
#     compare    the libraries of earlier commits that pack.sh added, and this one, in turns
#     bench      Limbeck, PyTorch, Limbeck again, part by part; the table comes last
#     profile    kernels of one training step, by ncu
#     all        everything but compare and profile
# Environment:
#   OUT              results and logs          [out/cuda]
#   SECONDS_LEFT     for all of it; later parts get what is left, and are left out when nothing is  [540]
#   BENCH_PARTS      [train attention kd sequence extract rank topk request-js ops tuned]
#   COMPARE_ROWS, COMPARE_ROUNDS   [rows of training, KD and extraction; 3]
#   SANITIZE_FILTER  parts of tests' titles, with | between them    TEST_FILTER likewise
#   SANITIZE_REVERSED=1  the last files first: what the time did not reach before
#   PYTHON           with PyTorch              [python3]
#   LIMBECK_CUBLAS_PATH   libcublasLt.so, else it is looked for
#   COMMIT           named in the result       [git's]
#   PROFILE_PARTS, PROFILE_BATCH   what is profiled   [train, 16]
#   PACK_OUT=1       leave only a few files in OUT, the rest in logs.tgz
#   KEEP_CACHE=1     PyTorch's compilations as OUT/torch-cache.*: in .gpu, the next machine of that kind need not prewarm
#   OURS_FLAGS, PEERS_FLAGS, SMOKE_FLAGS   for a dry run without a GPU: --tiny, --tiny --device cpu --no-compile, …
# What one call compiled and unpacked the next one on the same machine finds: tests and prewarm, then bench, lose less where
# a machine fails. Each needs an OUT of its own; table.py joins them.
# Binaries come from .gpu (see pack.sh) or build-cuda; if neither runs, they are built into build-cuda.
# shellcheck disable=SC2086
set -u
cd "$(dirname "$0")/../.." || exit 1
here=bench/cuda
OUT=${OUT:-out/cuda}
python=${PYTHON:-python3}
deadline=$(($(date +%s) + ${SECONDS_LEFT:-540}))
mkdir -p "$OUT"
parts=" ${*:-all} "
[[ $parts == *" all "* ]] && parts+="tests sanitize prewarm smoke bench "

wants() { [[ $parts == *" $1 "* ]]; }
left() { echo $((deadline - $(date +%s))); }
say() { echo "-- $* ($(left) s left)"; }
# limited SECONDS COMMAND…: at most so long, and no longer than what is left.
limited() {
  local limit=$1 rest
  shift
  rest=$(left)
  ((rest < limit)) && limit=$rest
  if ((limit < 5)); then
    echo "left out, no time: $*" >&2
    return 124
  fi
  timeout -k 5 "$limit" "$@"
}

# ---------------------------------------------------------------------------------------------------------- machine
{
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,temperature.gpu,power.limit \
    --format=csv,noheader | sed 's/^/gpu: /'
  echo "nvcc: $(nvcc --version 2>/dev/null | grep release | sed 's/.*release //')"
  echo "processors: $(nproc)"
} >"$OUT/machine.txt" 2>&1
cat "$OUT/machine.txt"

if [[ -z ${LIMBECK_CUBLAS_PATH:-} ]]; then
  for directory in $("$python" -c 'import sys; print(*sys.path)' 2>/dev/null) /usr/local/cuda/lib64; do
    for file in "$directory"/nvidia/*/lib/libcublasLt.so.1[0-9] "$directory"/libcublasLt.so.1[0-9]; do
      [[ -z ${LIMBECK_CUBLAS_PATH:-} && -e $file ]] && export LIMBECK_CUBLAS_PATH=$file
    done
  done
fi
echo "cublas: $(basename "${LIMBECK_CUBLAS_PATH:-none found}")" | tee -a "$OUT/machine.txt"

# The declarations that we wrote by hand, against the vendor's.
for directory in /usr/local/cuda/include $("$python" -c 'import sys; print(*(p + "/nvidia" for p in sys.path))' 2>/dev/null); do
  header=$(find -L "$directory" -maxdepth 3 -name cublasLt.h 2>/dev/null | head -1)
  [[ -n $header ]] && break
done
if [[ -n ${header:-} ]]; then
  if nvcc -std=c++17 -arch=sm_90 -x cu -c -o /dev/null -I native -I "$(dirname "$header")" native/cuda/cublas_lt.cc \
    >"$OUT/header.log" 2>&1; then
    echo "declarations: as in $header"
  else
    echo "declarations: NOT as in $header"
    grep -m5 error "$OUT/header.log"
  fi
else
  echo "declarations: no cublasLt.h here to compare with"
fi

# --------------------------------------------------------------------------------------------------------- binaries
bin=
unpacked=/tmp/limbeck-programs
rm -rf $unpacked
[[ -f .gpu/programs.tar.xz ]] && mkdir -p $unpacked && tar -C $unpacked -xJf .gpu/programs.tar.xz
for directory in $unpacked "$PWD/build-cuda"; do
  chmod +x "$directory"/cuda_tests "$directory"/bench_cuda* 2>/dev/null
  [[ -x $directory/cuda_tests && -x $directory/bench_cuda_ops && -f $directory/liblimbeck_cuda.so ]] || continue
  if limited 60 "$directory/bench_cuda_ops" --parts none >"$OUT/start.log" 2>&1; then
    bin=$directory
    break
  fi
  echo "$directory does not run here: $(head -c 300 "$OUT/start.log")"
  # It ran far enough to say what is wrong with the machine or the library: building again would not help.
  grep -q '"error"' "$OUT/start.log" && bin=$directory && break
done
if [[ -z $bin ]]; then
  say "building"
  bin=$PWD/build-cuda
  generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
  {
    cmake -S native/cuda -B build-cuda -G "$generator" -DLIMBECK_CUDA_EMULATED=OFF -DCMAKE_CUDA_ARCHITECTURES=90a-real \
      -DCMAKE_BUILD_TYPE=Release &&
      limited 400 cmake --build build-cuda --parallel 16 \
        --target cuda_tests bench_cuda bench_cuda_ops limbeck_cuda
  } >"$OUT/build.log" 2>&1 || { echo "the build failed:"; grep -m10 -i "error" "$OUT/build.log"; tail -5 "$OUT/build.log"; }
fi
export LIMBECK_CUDA_LIBRARY=$bin/liblimbeck_cuda.so
echo "binaries: $bin"

# ------------------------------------------------------------------------------------------------------------ checks
export TORCHINDUCTOR_CACHE_DIR=/tmp/limbeck-torch-cache
# Four processes prewarm: each would have a compiler, with a copy of PyTorch, for every processor.
export TORCHINDUCTOR_COMPILE_THREADS=4
if compgen -G ".gpu/torch-cache.*" >/dev/null; then
  mkdir -p $TORCHINDUCTOR_CACHE_DIR && cat .gpu/torch-cache.* | tar -C $TORCHINDUCTOR_CACHE_DIR -xJf - && say "cache unpacked"
fi
prewarming=()
if wants prewarm; then
  say "prewarm: in the background"
  for group in train kd extract sequence,request,rank; do
    limited 240 "$python" $here/peers.py --prewarm --parts $group --max-seconds 200 --out "$OUT/prewarm.jsonl" \
      ${PEERS_FLAGS:-} >"$OUT/prewarm-${group%%,*}.log" 2>&1 &
    prewarming+=($!)
  done
fi
if wants tests; then
  say "tests"
  limited 150 "$python" $here/run_tests.py $bin/cuda_tests "$OUT/tests.log" --jobs 8 --timeout 60 --max-seconds 140 \
    --only "${TEST_FILTER:-}" test/native/cuda/*.test.cc
fi
if wants sanitize; then
  say "sanitize"
  sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  tools=(memcheck racecheck synccheck initcheck)
  running=()
  for tool in "${tools[@]}"; do
    more=
    # The tests of the driver start other processes.
    sources=$(ls ${SANITIZE_REVERSED:+-r} test/native/cuda/*.test.cc | grep -v driver)
    case $tool in
      memcheck) more="--destroy-on-device-error kernel" ;;
      # cuBLAS's kernels hand shared memory on by ways that the tool does not know, and it fails when told to leave them
      # out: its complaints about kernels named nvjet are not ours.
      # cuBLAS writes results by bulk copies, which initcheck does not see: what reads them would be reported.
      initcheck) sources=$(ls ${SANITIZE_REVERSED:+-r} test/native/cuda/*.test.cc | grep -E "/(attention|device_arena|elementwise|embedding|norm|optimizer|sequence_encoder)") ;;
    esac
    limited $((${SANITIZE_SECONDS:-120} + 10)) "$python" $here/run_tests.py $bin/cuda_tests "$OUT/$tool.log" \
      --prefix "$sanitizer --tool $tool --print-limit 10 --error-exitcode 9 $more" --jobs 4 --timeout 60 \
      --max-seconds "${SANITIZE_SECONDS:-120}" --only "${SANITIZE_FILTER:-}" $sources \
      >"$OUT/$tool.txt" 2>&1 &
    running+=($!)
  done
  for i in "${!tools[@]}"; do
    wait "${running[$i]}"
    echo "${tools[$i]}: $(tail -1 "$OUT/${tools[$i]}.txt")"
    grep -A3 '^FAIL' "$OUT/${tools[$i]}.txt" | head -12
  done
fi

node=$(command -v node || true)
if [[ -f .gpu/node.xz && -z $node ]] && { wants smoke || wants bench; }; then
  node=/tmp/limbeck-node
  [[ -x $node ]] || { xz -dc .gpu/node.xz >$node && chmod +x $node; }
fi
# Plain copies, so that a folder that is ignored at home needs no place of its own.
[[ -d .gpu/dist && ! -d dist ]] && cp -r .gpu/dist dist
[[ -d .gpu/node_modules && ! -d node_modules ]] && cp -r .gpu/node_modules node_modules
[[ -f .gpu/limbeck.node && ! -f build/Release/limbeck.node ]] && mkdir -p build/Release &&
  cp .gpu/limbeck.node build/Release/
if wants smoke; then
  say "smoke"
  if [[ -n $node ]]; then
    limited 90 "$node" $here/smoke.mjs "$OUT/smoke" --parts training ${SMOKE_FLAGS:-} 2>&1 | tail -15
    # What float64 references computed; more of them where .gpu/golden has some.
    limited 60 "$node" scripts/parity.mjs --built --device cuda $(ls -d .gpu/golden/*/ 2>/dev/null) \
      $(find test/fixtures -name expected.safetensors -not -path '*/adapters/*' -printf '%h\n') >"$OUT/parity.json" 2>"$OUT/parity.log"
    echo "parity with the float64 references: exit $? $(head -c 200 "$OUT/parity.log")"
    [[ -f $OUT/smoke/logits.safetensors ]] &&
      limited 60 "$python" $here/peers.py --check-student "$OUT/smoke/model" "$OUT/smoke/logits.safetensors" \
        --device cpu --out "$OUT/check-student.jsonl" 2>&1 | grep -v Warning | tail -3
  else
    echo "smoke: no node here"
  fi
fi
((${#prewarming[@]} > 0)) && say "prewarm: waiting" && wait "${prewarming[@]}"
if ((${#prewarming[@]} > 0)) && [[ -n ${KEEP_CACHE:-} ]]; then
  tar -C $TORCHINDUCTOR_CACHE_DIR -c . | xz -T0 -3 | split -b 15M - "$OUT/torch-cache."
fi

# ----------------------------------------------------------------------------------------------------------- compare
if wants compare; then
  rm -rf "$OUT/compare" && mkdir -p "$OUT/compare"
  for round in $(seq "${COMPARE_ROUNDS:-3}"); do
    say "compare, round $round"
    for library in "$bin"/before/*.so "$bin/liblimbeck_cuda.so"; do
      [[ -f $library ]] || continue  # none was added
      name=$(basename "$library" .so)
      [[ $library == "$bin/liblimbeck_cuda.so" ]] && name=this
      limited 60 "$bin/bench_cuda" --library "$library" --parts train,kd,extract \
        --rows "${COMPARE_ROWS:-train-B64,train-B66,kd-B32,kd-B66,extract-T1024-B32,extract-T1024-B33}" \
        --rounds 3 --max-seconds 20 --out "$OUT/compare/$name.$round.jsonl" ${OURS_FLAGS:-} >>"$OUT/compare.log" 2>&1 ||
        { echo "compare $name: exit $?" && tail -1 "$OUT/compare.log" | cut -c1-300; }
    done
  done
  "$python" $here/compare.py "$OUT/compare" --json "$OUT/compare.json" --machine "$OUT/machine.txt" \
    ${COMMIT:+--commit "$COMMIT"}
fi

# ------------------------------------------------------------------------------------------------------------- bench
ours() { # PROGRAM PARTS SECONDS
  limited "$3" "$bin/$1" --parts "$2" --max-seconds "$3" --rounds "${ROUNDS:-5}" \
    --out "${OUT_LINES:-$OUT/limbeck.jsonl}" ${OUT_LINES:+--tune} ${OURS_FLAGS:-} >>"$OUT/bench.log" 2>&1 || { echo "$1 $2: exit $?" && tail -1 "$OUT/bench.log" | cut -c1-300; }
}
peers() { # PARTS SECONDS
  limited "$2" "$python" $here/peers.py --parts "$1" --max-seconds "$2" --out "$OUT/torch.jsonl" \
    ${PEERS_FLAGS:-} >>"$OUT/bench.log" 2>&1 || { echo "peers $1: exit $?" && tail -1 "$OUT/bench.log" | cut -c1-300; }
}
if wants bench; then
  rm -f "$OUT/limbeck.jsonl" "$OUT/limbeck-js.jsonl" "$OUT/torch.jsonl" "$OUT/bench.log"
  for part in ${BENCH_PARTS:-train attention kd sequence extract rank topk request-js ops tuned}; do
    say "bench $part"
    case $part in
      train) ours bench_cuda_ops ceilings 20 && ours bench_cuda train 40 && peers train 150 && ours bench_cuda train 40 ;;
      attention) ours bench_cuda_ops attention 20; peers attention 40; ours bench_cuda_ops attention 20 ;;
      topk) ours bench_cuda_ops topk,encoder 20; ours bench_cuda request 20; peers topk,request 60
        ours bench_cuda_ops topk,encoder 20; ours bench_cuda request 20 ;;
      request-js) [[ -n $node ]] &&
        limited 30 "$node" $here/smoke.mjs "$OUT/request" --parts request --out "$OUT/limbeck-js.jsonl" ${SMOKE_FLAGS:-} ;;
      ops) ours bench_cuda_ops ops,products,loss 60; peers ops 30; ours bench_cuda_ops ops,loss 40 ;;
      tuned) OUT_LINES=$OUT/tuned.jsonl ours bench_cuda train,kd,sequence 45 ;;
      *) ours bench_cuda "$part" 30; peers "$part" 90; ours bench_cuda "$part" 30 ;;
    esac
  done
  nvidia-smi --query-gpu=clocks.sm,temperature.gpu,power.draw --format=csv,noheader 2>/dev/null |
    sed 's/^/after the bench: /' >>"$OUT/machine.txt"
fi
if wants profile; then
  say "profile"
  ncu=$(command -v ncu || echo /usr/local/cuda/bin/ncu)
  limited 120 "$ncu" --metrics gpu__time_duration.sum --csv --clock-control none --cache-control none \
    --log-file "$OUT/profile.csv" $bin/bench_cuda --parts "${PROFILE_PARTS:-train}" --once \
    --batches "${PROFILE_BATCH:-16}" ${OURS_FLAGS:-} >"$OUT/profile.log" 2>&1 || tail -3 "$OUT/profile.log"
  "$python" $here/sum_profile.py "$OUT/profile.csv" --rows 40 | tee "$OUT/profile.txt"
  xz -f "$OUT/profile.csv" 2>/dev/null
fi
if [[ -f $OUT/limbeck.jsonl ]]; then
  say "table"
  "$python" $here/table.py "$OUT/limbeck.jsonl" "$OUT/torch.jsonl" $(ls "$OUT"/*-js.jsonl "$OUT"/check-*.jsonl 2>/dev/null) \
    --json "$OUT/result.json" --machine "$OUT/machine.txt" ${COMMIT:+--commit "$COMMIT"} | tee "$OUT/table.txt"
fi
# At most eight files come back from some machines: logs go into one archive.
tar -C "$OUT" -czf /tmp/limbeck-logs.tgz --exclude=smoke --exclude=logs.tgz --exclude='torch-cache.*' . 2>/dev/null && mv /tmp/limbeck-logs.tgz "$OUT/logs.tgz"
if [[ -n ${PACK_OUT:-} ]]; then
  find "$OUT" -mindepth 1 -maxdepth 1 ! -name logs.tgz ! -name result.json ! -name table.txt ! -name tests.log \
    ! -name profile.txt ! -name compare.json ! -name 'torch-cache.*' -exec rm -rf {} +
fi
say "done"
