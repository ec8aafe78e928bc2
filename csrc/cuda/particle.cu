// Launchers of the particle worlds.
#include "particle.cuh"

namespace mg2l {
namespace {

template <typename scalar_t>
int launch_step(const ParticleArgs<scalar_t>& args, void* stream) {
  if (args.worlds == 0) return cudaSuccess;
  const int64_t blocks = (args.worlds + kParticleThreads - 1) / kParticleThreads;
  MG2L_LAUNCH(particle_step_kernel<scalar_t>, dim3(static_cast<unsigned>(blocks)),
              dim3(kParticleThreads), stream, args);
  return cudaGetLastError();
}

}  // namespace

int mg2l_particle_step_float(const ParticleArgs<float>* args, void* stream) {
  return launch_step(*args, stream);
}
int mg2l_particle_step_double(const ParticleArgs<double>* args, void* stream) {
  return launch_step(*args, stream);
}

}  // namespace mg2l
