#!/bin/sh
# What remains to be measured on a GPU, in one command: benchmarks/gpu.sh [FOLDER]
#
# Builds with nvcc, runs the tests of the operators on the card, times kernels against their
# definitions and predictions, the two ways of pairwise_lse and of encode_context's first layer
# against each other, iterations against the CPU's, steps of 4,096 worlds, and races JAX on
# the same card if it is installed (pip install "jax[cuda12]" optax). Writes FOLDER/gpu.json and
# FOLDER/gpu.md (results/gpu by default); each part that fails says so and does not stop the others.
set -u
cd "$(dirname "$0")/.."
out=${1:-results/gpu}
python=${PYTHON:-python}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/card.csv" || exit 1
MG2L_CUDA=1 $python -m pip install --no-build-isolation -c constraints.txt -e . || exit 1
$python -m mg2l.info | tee "$out/info.txt"
failed=0
$python -m pytest tests/test_gae.py tests/test_encode_context.py tests/test_pia_pool.py \
  tests/test_pairwise_lse.py tests/test_stacked_mlp.py tests/test_film.py tests/test_clipped.py \
  tests/test_gaussian_surrogate.py tests/test_contrast.py tests/test_clip_norms.py tests/test_particle_tensors.py \
  --junitxml="$out/tests.xml" -q || failed=1
$python -m benchmarks.gpu --out "$out/gpu.json" kernels ways first_layer iterations worlds || failed=1
if $python -c "import jax, optax" 2>/dev/null; then
  $python -m benchmarks.peers.race --device cuda --only ours jax_mappo --hidden 128 256 \
    --minibatches 1 4 --out "$out/race.json" || failed=1
else
  echo "JAX is not installed: not raced"
fi
$python -m benchmarks.gpu --out "$out/gpu.json" --table "$out/gpu.md" || failed=1
exit $failed
