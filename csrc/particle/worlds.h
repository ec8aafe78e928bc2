// Steps of all worlds at once, on the CPU.
#pragma once

#include "../cuda/launchers.h"
#include "scenarios.h"

namespace mg2l::particle {

// Advances `envs` worlds by one step of kTimeStep, whatever the scenario.
void step(const Bodies& bodies, int64_t envs,
          const double* actions,  // [N, B, 2] in [-1, 1]
          double* position,       // [N, B, 2], read and written
          double* velocity);      // [N, B, 2], read and written

// A step of a scenario in all worlds; `force` is not wanted.
void step_scenarios(ParticleArgs<double> args);

}  // namespace mg2l::particle
