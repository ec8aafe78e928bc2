// Physics of the particle world: discs in a square with soft walls, one world at a time, for the
// CPU and for CUDA.
//
// Arrays hold all worlds at once, world-major: [N, B, 2] for N worlds of B bodies.
// Everything is computed in double precision: contacts are stiff, and rounding to float at every
// step would let trajectories drift apart within an episode.

#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define MG2L_WORLD __host__ __device__ inline
#else
#define MG2L_WORLD inline
#endif

namespace mg2l::particle {

constexpr double kTimeStep = 0.1;        // [s]
constexpr double kDamping = 0.25;        // part of the velocity lost at every step
constexpr double kContactForce = 100.0;  // force per unit of penetration
constexpr double kContactMargin = 1e-3;  // length over which a contact softens
constexpr double kWall = 1.2;            // the four walls are the lines x, y = +-kWall
constexpr double kWallSize = 0.2;        // half thickness of a wall

// Beyond this many margins the softplus equals its argument in double precision, or is below 1e-19
// of a unit of length.
constexpr double kSharp = 37.0;

// Properties of bodies, the same in every world; arrays of length `count`. All masses are 1.
struct Bodies {
  int64_t count;
  const double* acceleration;  // force of an action of length 1
  const double* size;          // radius
  const double* max_speed;     // infinity: no limit
  const uint8_t* collides;     // touches other bodies that collide; walls push every body
};

// Force between two surfaces `gap` apart: a softplus of the penetration -gap. Bodies at rest
// against a wall spend most of a step here.
MG2L_WORLD double contact_force(double gap) {
  constexpr double kUnit = kContactMargin * kContactForce;
  const double x = gap * (-1.0 / kContactMargin);
  if (x < -kSharp) return 0.0;
  if (x > kSharp) return x * kUnit;
  const double e = exp(-fabs(x));
  // The series of log1p is exact to double precision where e is small, and several times faster.
  const double tail = e < 1e-5 ? e * (1 - e * (0.5 - e / 3)) : log1p(e);
  return (x > 0 ? x + tail : tail) * kUnit;
}

// Force of the two walls across one axis on a body of radius `size`. A body on the very line of a
// wall is pushed inwards; one behind it is pushed out, which clipped actions cannot bring about.
MG2L_WORLD double wall_force(double coordinate, double size) {
  const double reach = size + kWallSize;
  if (fabs(coordinate) < kWall - reach - kSharp * kContactMargin) return 0.0;
  double force = 0.0;
  for (int side = 0; side < 2; ++side) {
    const double wall = side == 0 ? kWall : -kWall;
    const double offset = coordinate - wall;
    const bool upwards = offset > 0 || (offset == 0 && wall < 0);
    const double push = contact_force(fabs(offset) - reach);
    force += upwards ? push : -push;
  }
  return force;
}

// Equal and opposite forces between every two colliding bodies of one world.
MG2L_WORLD void add_collisions(const Bodies& bodies, const double* position, double* force) {
  for (int64_t a = 0; a < bodies.count; ++a) {
    if (bodies.collides[a] == 0) continue;
    for (int64_t b = a + 1; b < bodies.count; ++b) {
      if (bodies.collides[b] == 0) continue;
      const double dx = position[2 * a] - position[2 * b];
      const double dy = position[2 * a + 1] - position[2 * b + 1];
      const double touch = bodies.size[a] + bodies.size[b];
      const double reach = touch + kSharp * kContactMargin;
      const double square = dx * dx + dy * dy;
      if (square > reach * reach) continue;
      const double distance = sqrt(square);
      const double push = contact_force(distance - touch);
      // Two bodies in the same place have no direction to part in: take x.
      const double fx = distance > 0 ? push * dx / distance : push;
      const double fy = distance > 0 ? push * dy / distance : 0.0;
      force[2 * a] += fx;
      force[2 * a + 1] += fy;
      force[2 * b] -= fx;
      force[2 * b + 1] -= fy;
    }
  }
}

MG2L_WORLD double clipped(double action) { return action < -1 ? -1 : action > 1 ? 1 : action; }

// Advances one world by kTimeStep: first velocities, then positions. `force` [B, 2] holds the
// bodies' actions in [-1, 1], and is overwritten.
MG2L_WORLD void move(const Bodies& bodies, double* force, double* position, double* velocity) {
  for (int64_t i = 0; i < 2 * bodies.count; ++i) {
    force[i] = force[i] * bodies.acceleration[i / 2] + wall_force(position[i], bodies.size[i / 2]);
  }
  add_collisions(bodies, position, force);
  for (int64_t b = 0; b < bodies.count; ++b) {
    double vx = velocity[2 * b] * (1 - kDamping) + force[2 * b] * kTimeStep;
    double vy = velocity[2 * b + 1] * (1 - kDamping) + force[2 * b + 1] * kTimeStep;
    const double speed = sqrt(vx * vx + vy * vy);
    if (speed > bodies.max_speed[b]) {
      vx *= bodies.max_speed[b] / speed;
      vy *= bodies.max_speed[b] / speed;
    }
    velocity[2 * b] = vx;
    velocity[2 * b + 1] = vy;
    position[2 * b] += vx * kTimeStep;
    position[2 * b + 1] += vy * kTimeStep;
  }
}

}  // namespace mg2l::particle
