#!/usr/bin/env bash
# Builds for the GPU here, where there is none, and puts into .gpu/ what a machine with one needs to run check.sh without
# building: bench/cuda/pack.sh [--no-build] [--no-node]. Programs are for compute capability 9.0 alone. GOLDEN names a
# folder of checkpoints with what a float64 reference computes from them, to compare with there. BEFORE names commits, the
# oldest first, whose libraries go with it, for check.sh's part compare.
set -eu
cd "$(dirname "$0")/../.."
jobs=${JOBS:-1}
exclude=$(git rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$exclude")"
for folder in .gpu build-cuda; do
  grep -qx "/$folder/" "$exclude" 2>/dev/null || echo "/$folder/" >>"$exclude"
done
# The addon refuses a library that is not of its sources.
node scripts/setup.mjs
generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
if [[ " $* " != *" --no-build "* ]]; then
  cmake -S native/cuda -B build-cuda -G "$generator" -DLIMBECK_CUDA_EMULATED=OFF -DCMAKE_CUDA_ARCHITECTURES=90a-real \
    -DCMAKE_BUILD_TYPE=Release ${LIMBECK_CORE_LIBRARY:+-DLIMBECK_CORE_LIBRARY="$LIMBECK_CORE_LIBRARY"} >/dev/null
  cmake --build build-cuda --parallel "$jobs" --target limbeck_cuda bench_cuda bench_cuda_ops cuda_tests
fi
staging=$(mktemp -d)
if [[ -n ${BEFORE:-} ]]; then
  # One folder in which commit after commit is checked out, so that what they share is built once.
  rm -rf build-cuda/before-source && git worktree prune
  git worktree add --quiet --force --detach build-cuda/before-source HEAD
  mkdir -p "$staging/before"
  number=0
  for commit in $BEFORE; do
    git -C build-cuda/before-source checkout --quiet --detach "$commit"
    cmake -S build-cuda/before-source/native/cuda -B build-cuda/before -G "$generator" \
      -DLIMBECK_CUDA_EMULATED=OFF -DCMAKE_CUDA_ARCHITECTURES=90a-real -DCMAKE_BUILD_TYPE=Release >/dev/null
    cmake --build build-cuda/before --parallel "$jobs" --target limbeck_cuda
    number=$((number + 1))
    library=$staging/before/$(printf %02d $number)-$(git rev-parse --short "$commit").so
    cp build-cuda/before/liblimbeck_cuda.so "$library"
    strip --strip-unneeded "$library"
  done
  git worktree remove --force build-cuda/before-source
fi
for program in cuda_tests bench_cuda bench_cuda_ops liblimbeck_cuda.so; do
  cp build-cuda/$program "$staging/$program"
  strip --strip-unneeded "$staging/$program"
done
mkdir -p .gpu
tar -C "$staging" -c . | xz -T0 -6 >.gpu/programs.tar.xz
rm -r "$staging"
if [[ " $* " != *" --no-node "* && ! -f .gpu/node.xz ]]; then
  node=$(readlink -f "$(command -v node)")
  cp "$node" .gpu/node
  strip --strip-unneeded .gpu/node 2>/dev/null || true
  xz -T0 -9 -f .gpu/node
fi
rm -rf .gpu/dist .gpu/node_modules
cp -r dist .gpu/dist
find .gpu/dist -name '*.d.ts' -delete
cp build/Release/limbeck.node .gpu/limbeck.node
strip --strip-unneeded .gpu/limbeck.node
# What dist imports when it starts, as JavaScript without its sources and types.
mkdir -p .gpu/node_modules
for name in zod; do
  cp -r node_modules/$name .gpu/node_modules/$name
  find .gpu/node_modules/$name \( -name '*.ts' -o -name '*.cts' -o -name '*.map' -o -name '*.md' -o -path '*/src/*' \) -type f -delete
done
rm -rf .gpu/golden
[[ -n ${GOLDEN:-} ]] && cp -r "$GOLDEN" .gpu/golden
du -sh .gpu .gpu/*
travelling=$(($(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb 2>/dev/null | tail -1 | cut -f1) +
  $(du -sb .gpu | cut -f1)))
echo "travels: $((travelling >> 20)) MiB of 64"
