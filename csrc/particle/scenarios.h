// A step of a whole scenario in one world: scripted bodies, physics, rewards, observations; for the
// CPU and for CUDA. The definitions are the scenarios of envs/particle, in NumPy.
#pragma once

#include "physics.h"

namespace mg2l {

template <typename scalar_t>
struct ParticleArgs;  // csrc/cuda/launchers.h

}  // namespace mg2l

namespace mg2l::particle {

// As `compiled` of the scenarios in envs/particle numbers them.
enum Kind : int64_t { kSpread, kHunting, kGoals, kJointGoals, kWeights, kBounty };

constexpr double kSight = 1.414;      // of a predator: bodies from this distance on are not seen
constexpr double kCatch = 10.0;       // paid to a predator that touches a target
constexpr double kWeightReach = 0.3;  // distance at which a landmark pays exp(-1/2) of its weight
constexpr double kPayReach = 0.5;     // distance at which a prey pays exp(-1) of its pay
constexpr int64_t kHeading = 10;      // steps for which a prey of hidden pay keeps its course

// Numbers of an agent's observation.
template <typename scalar_t>
MG2L_WORLD int64_t observation_width(const ParticleArgs<scalar_t>& in) {
  if (in.kind == kHunting) return 2 + 3 * (in.bodies - 1);
  if (in.kind == kBounty) return 4 + 2 * (in.bodies - in.agents);
  const int64_t own = in.kind == kSpread ? 2 : 4;
  return own + 2 * in.objects + (in.kind == kJointGoals ? 0 : 2 * (in.agents - 1));
}

// One world, and where its results go.
template <typename scalar_t>
struct Scene {
  const ParticleArgs<scalar_t>& in;
  Bodies bodies;
  const scalar_t* actions;  // [A, 2]
  const double* landmarks;  // [L, 2]
  const double* task;       // [task_width]
  const double* draws;
  double *position, *velocity, *force;  // [B, 2]
  float* observations;                  // [A, O]
  float* rewards;                       // [A]
  int64_t clock;

  MG2L_WORLD Scene(const ParticleArgs<scalar_t>& args, int64_t world)
      : in(args),
        bodies{args.bodies, args.acceleration, args.size, args.max_speed, args.collides},
        actions(args.actions + world * 2 * args.agents),
        landmarks(args.landmarks + world * 2 * args.objects),
        task(args.task + world * args.task_width),
        draws(args.draws + world * args.draw_count),
        position(args.position + world * 2 * args.bodies),
        velocity(args.velocity + world * 2 * args.bodies),
        force(args.force + world * 2 * args.bodies),
        observations(args.observations + world * args.agents * args.width),
        rewards(args.rewards + world * args.agents),
        clock(args.clock[world]) {}

  MG2L_WORLD double distance(const double* a, const double* b) const {
    const double dx = b[0] - a[0], dy = b[1] - a[1];
    return sqrt(dx * dx + dy * dy);
  }

  // Actions of all bodies, clipped, into `force`. Targets flee from the nearest predator, all other
  // prey wanders.
  MG2L_WORLD void act() {
    for (int64_t i = 0; i < 2 * in.agents; ++i) force[i] = clipped(static_cast<double>(actions[i]));
    const int64_t prey = in.bodies - in.agents;
    const int64_t course = in.kind == kBounty ? clock / kHeading : clock;
    const double* wander = draws + 2 * in.bodies + 2 * prey * course;
    for (int64_t p = 0; p < prey; ++p) {
      double* to = force + 2 * (in.agents + p);
      if (in.kind == kBounty || !(task[p] > 0)) {
        to[0] = clipped(2.0 * wander[2 * p] - 1.0);
        to[1] = clipped(2.0 * wander[2 * p + 1] - 1.0);
        continue;
      }
      const double* own = position + 2 * (in.agents + p);
      int64_t hunter = 0;
      double nearest = distance(own, position);
      for (int64_t a = 1; a < in.agents; ++a) {
        const double other = distance(own, position + 2 * a);
        if (other < nearest) {
          nearest = other;
          hunter = a;
        }
      }
      const double dx = own[0] - position[2 * hunter], dy = own[1] - position[2 * hunter + 1];
      const double length = sqrt(dx * dx + dy * dy);
      to[0] = length == 0 ? 1.0 : clipped(dx / length);  // in the very same place: any way will do
      to[1] = length == 0 ? 0.0 : clipped(dy / length);
    }
  }

  // Distance of the agent that is nearest to a landmark.
  MG2L_WORLD double nearest_agent(int64_t landmark) const {
    double nearest = INFINITY;
    for (int64_t a = 0; a < in.agents; ++a) {
      const double other = distance(position + 2 * a, landmarks + 2 * landmark);
      nearest = other < nearest || other != other ? other : nearest;
    }
    return nearest;
  }

  MG2L_WORLD double target_distance(int64_t agent) const {
    double nearest = INFINITY;
    for (int64_t p = 0; p < in.bodies - in.agents; ++p) {
      if (!(task[p] > 0)) continue;
      const double other = distance(position + 2 * agent, position + 2 * (in.agents + p));
      nearest = other < nearest || other != other ? other : nearest;
    }
    return nearest;
  }

  MG2L_WORLD double goal_distance(int64_t agent) const {
    const double dx = position[2 * agent] - task[2 * agent];
    const double dy = position[2 * agent + 1] - task[2 * agent + 1];
    return sqrt(dx * dx + dy * dy);
  }

  MG2L_WORLD void pay_all(double reward) {
    for (int64_t a = 0; a < in.agents; ++a) rewards[a] = static_cast<float>(reward);
  }

  MG2L_WORLD void pay() {
    const auto agents = static_cast<double>(in.agents);
    double sum = 0;
    switch (in.kind) {
      case kSpread:
        for (int64_t l = 0; l < in.objects; ++l) sum += nearest_agent(l) * task[l];
        pay_all(sum * -agents);
        return;
      case kWeights:
        for (int64_t l = 0; l < in.objects; ++l) {
          const double nearest = nearest_agent(l);
          sum += exp(-(nearest * nearest) / (2 * (kWeightReach * kWeightReach))) * task[l];
        }
        pay_all(sum);
        return;
      case kBounty:
        for (int64_t a = 0; a < in.agents; ++a) {
          double paid = 0;
          for (int64_t p = 0; p < in.bodies - in.agents; ++p) {
            const double away = distance(position + 2 * a, position + 2 * (in.agents + p));
            paid += exp(-away / kPayReach) * task[p];
          }
          sum += paid;
        }
        pay_all(sum / agents);
        return;
      case kGoals:
        for (int64_t a = 0; a < in.agents; ++a) rewards[a] = static_cast<float>(-goal_distance(a));
        return;
      case kJointGoals:
        for (int64_t a = 0; a < in.agents; ++a) sum += -goal_distance(a);
        pay_all(sum / agents);
        return;
      default:
        for (int64_t a = 0; a < in.agents; ++a) sum += target_distance(a);
        for (int64_t a = 0; a < in.agents; ++a) {
          const bool touches = target_distance(a) < in.size[0] + in.size[in.bodies - 1];
          rewards[a] = static_cast<float>(touches ? -0.1 * sum + kCatch : -0.1 * sum);
        }
    }
  }

  // Offsets from an agent to points, all but point `self`, of which those out of sight are 0.
  MG2L_WORLD float* write_offsets(float* to, const double* from, const double* points,
                                  int64_t count, int64_t self, double sight) const {
    for (int64_t p = 0; p < count; ++p) {
      if (p == self) continue;
      const bool seen = sight == INFINITY || distance(from, points + 2 * p) < sight;
      *to++ = seen ? static_cast<float>(points[2 * p] - from[0]) : 0.0F;
      *to++ = seen ? static_cast<float>(points[2 * p + 1] - from[1]) : 0.0F;
    }
    return to;
  }

  MG2L_WORLD void observe() {
    for (int64_t a = 0; a < in.agents; ++a) {
      const double* own = position + 2 * a;
      float* to = observations + a * in.width;
      *to++ = static_cast<float>(own[0]);
      *to++ = static_cast<float>(own[1]);
      if (in.kind != kSpread && in.kind != kHunting) {
        *to++ = static_cast<float>(velocity[2 * a]);
        *to++ = static_cast<float>(velocity[2 * a + 1]);
      }
      if (in.kind == kHunting) {
        to = write_offsets(to, own, position, in.bodies, a, kSight);
        for (int64_t b = 0; b < in.bodies; ++b) {
          if (b == a) continue;
          const double other = distance(own, position + 2 * b);
          *to++ = other < kSight ? static_cast<float>(other) : 0.0F;
        }
        continue;
      }
      if (in.kind == kBounty) {
        write_offsets(to, own, position + 2 * in.agents, in.bodies - in.agents, -1, INFINITY);
        continue;
      }
      to = write_offsets(to, own, landmarks, in.objects, -1, INFINITY);
      if (in.kind != kJointGoals) write_offsets(to, own, position, in.agents, a, INFINITY);
    }
  }
};

// One step of a world, or with `advance` false only what there is to observe.
template <typename scalar_t>
MG2L_WORLD void step_world(const ParticleArgs<scalar_t>& args, int64_t world) {
  Scene<scalar_t> scene(args, world);
  if (args.advance) {
    scene.act();
    move(scene.bodies, scene.force, scene.position, scene.velocity);
    args.clock[world] += 1;
    scene.pay();
  }
  scene.observe();
}

}  // namespace mg2l::particle
