// Kernel of the particle worlds: plain pointers, no torch header. What a world does is written
// once, for the CPU too: csrc/particle/scenarios.h.
#pragma once

#include <cstdint>

#include "../particle/scenarios.h"
#include "launchers.h"
#include "portable.cuh"

namespace mg2l {

constexpr int kParticleThreads = 64;  // few: 4,096 worlds are to reach as many multiprocessors

// A thread owns a world: some hundred numbers, which it reads and writes at a stride of a world's
// size, mostly in the first-level cache. Parallelism is N.
//
// Launch: grid.x * kParticleThreads >= worlds. Writes every result.
template <typename scalar_t>
__global__ void particle_step_kernel(ParticleArgs<scalar_t> args) {
  const int64_t world = static_cast<int64_t>(blockIdx.x) * kParticleThreads + threadIdx.x;
  if (world >= args.worlds) return;
  particle::step_world(args, world);
}

}  // namespace mg2l
