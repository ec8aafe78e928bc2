#include <algorithm>
#include <vector>

#include "worlds.h"

namespace mg2l::particle {

void step(const Bodies& bodies, int64_t envs, const double* actions, double* position,
          double* velocity) {
  const int64_t row = 2 * bodies.count;
  std::vector<double> force(row);
  for (int64_t env = 0; env < envs; ++env) {
    std::copy_n(actions + env * row, row, force.data());
    move(bodies, force.data(), position + env * row, velocity + env * row);
  }
}

void step_scenarios(ParticleArgs<double> args) {
  std::vector<double> force(2 * args.worlds * args.bodies);
  args.force = force.data();
  for (int64_t world = 0; world < args.worlds; ++world) step_world(args, world);
}

}  // namespace mg2l::particle
