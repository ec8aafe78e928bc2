// The physics step of all particle worlds, steps of whole scenarios, and the geometry that
// scenarios observe, as C functions; called by envs/particle/simulator.py.
//
// Scenarios are written in NumPy, which is slow on short trailing axes (two coordinates, a few
// bodies): the few loops that every scenario needs are here, over all worlds in one call.
#include "../simulators/api.h"

#include <cmath>
#include <vector>

#include "worlds.h"

namespace mg2l::particle {
namespace {

bool numbers(const double* values, int64_t count) {
  bool all = true;
  for (int64_t i = 0; i < count; ++i) all &= values[i] == values[i];
  return all;
}

// For every world, every observer and every point but the observer itself, calls
// write(cell, dx, dy); cells of an observer are `width` numbers apart, and observers `row`.
template <typename Write>
void observe(int64_t worlds, int64_t observers, int64_t points, bool skip_self, const double* from,
             const double* to, float* out, int64_t row, int64_t width, const Write& write) {
  for (int64_t n = 0; n < worlds; ++n, to += 2 * points) {
    for (int64_t a = 0; a < observers; ++a, from += 2, out += row) {
      float* cell = out;
      for (int64_t p = 0; p < points; ++p) {
        if (skip_self && p == a) continue;
        write(cell, to[2 * p] - from[0], to[2 * p + 1] - from[1]);
        cell += width;
      }
    }
  }
}

}  // namespace

// Width of an agent's observation, of a scenario whose `kind` and counts are given.
MG2L_EXPORT int64_t mg2l_particle_width(const ParticleArgs<double>* args) noexcept {
  return observation_width(*args);
}

// A step of a compiled scenario, or with `advance` false only what there is to observe. False, and
// nothing has changed, where an action is not a number. `scene` holds all but these arrays.
MG2L_EXPORT bool mg2l_particle_scenario(const ParticleArgs<double>* scene,
                                        const double* actions,  // [N, A, 2], or null to observe
                                        float* observations,    // [N, A, O]
                                        float* rewards,         // [N, A], or null to observe
                                        bool advance) noexcept {
  ParticleArgs<double> args = *scene;
  if (advance && !numbers(actions, 2 * args.worlds * args.agents)) return false;
  args.actions = actions;
  args.observations = observations;
  args.rewards = rewards;
  args.advance = advance;
  step_scenarios(args);
  return true;
}

// The physics step, whatever the scenario. False, and nothing has changed, where an action is not a
// number.
MG2L_EXPORT bool mg2l_particle_step(int64_t worlds, int64_t agents, int64_t bodies,
                                    const double* actions,        // [N, A, 2]
                                    const double* scripted,       // [N, B - A, 2]
                                    const double* acceleration,   // [B]
                                    const double* size,           // [B]
                                    const double* max_speed,      // [B]
                                    const uint8_t* collides,      // [B]
                                    double* position,             // [N, B, 2], in place
                                    double* velocity) noexcept {  // [N, B, 2], in place
  const int64_t own = 2 * agents, others = 2 * (bodies - agents);
  if (!numbers(actions, worlds * own) || !numbers(scripted, worlds * others)) return false;
  std::vector<double> all(2 * worlds * bodies);
  double* to = all.data();
  for (int64_t n = 0; n < worlds; ++n) {
    for (int64_t i = 0; i < own; ++i) *to++ = clipped(*actions++);
    for (int64_t i = 0; i < others; ++i) *to++ = clipped(*scripted++);
  }
  step({bodies, acceleration, size, max_speed, collides}, worlds, all.data(), position, velocity);
  return true;
}

// Offsets of points from observers into out[:, :, column:], 0 from `radius` on.
MG2L_EXPORT void mg2l_particle_offsets(int64_t worlds, int64_t observers, int64_t points,
                                       bool skip_self, double radius,
                                       const double* from,       // [N, P, 2]
                                       const double* to,         // [N, Q, 2]
                                       float* out, int64_t row,  // [N, P, row]
                                       int64_t column) noexcept {
  out += column;
  if (std::isinf(radius)) {
    observe(worlds, observers, points, skip_self, from, to, out, row, 2,
            [](float* cell, double dx, double dy) {
              cell[0] = static_cast<float>(dx);
              cell[1] = static_cast<float>(dy);
            });
    return;
  }
  observe(worlds, observers, points, skip_self, from, to, out, row, 2,
          [radius](float* cell, double dx, double dy) {
            const bool seen = std::sqrt(dx * dx + dy * dy) < radius;
            cell[0] = seen ? static_cast<float>(dx) : 0.0f;
            cell[1] = seen ? static_cast<float>(dy) : 0.0f;
          });
}

// Their lengths, likewise.
MG2L_EXPORT void mg2l_particle_lengths(int64_t worlds, int64_t observers, int64_t points,
                                       bool skip_self, double radius,
                                       const double* from,       // [N, P, 2]
                                       const double* to,         // [N, Q, 2]
                                       float* out, int64_t row,  // [N, P, row]
                                       int64_t column) noexcept {
  observe(worlds, observers, points, skip_self, from, to, out + column, row, 1,
          [radius](float* cell, double dx, double dy) {
            const double distance = std::sqrt(dx * dx + dy * dy);
            cell[0] = distance < radius ? static_cast<float>(distance) : 0.0f;
          });
}

// Distances with the axis of worlds last, so that NumPy reduces over the short axes at full speed.
MG2L_EXPORT void mg2l_particle_distances(int64_t worlds, int64_t observers, int64_t points,
                                         const double* from,      // [N, P, 2]
                                         const double* to,        // [N, Q, 2]
                                         double* out) noexcept {  // [P, Q, N]
  for (int64_t p = 0; p < observers; ++p) {
    for (int64_t q = 0; q < points; ++q) {
      for (int64_t n = 0; n < worlds; ++n) {
        const double* own = from + 2 * (n * observers + p);
        const double* other = to + 2 * (n * points + q);
        const double dx = other[0] - own[0];
        const double dy = other[1] - own[1];
        *out++ = std::sqrt(dx * dx + dy * dy);
      }
    }
  }
}

}  // namespace mg2l::particle
