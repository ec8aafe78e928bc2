#include "physics.h"

#include <cmath>
#include <vector>

namespace mg2l::particle {
namespace {

// Beyond this many margins the softplus equals its argument in double precision, or is below 1e-19
// of a unit of length.
constexpr double kSharp = 37.0;

// Force between two surfaces `gap` apart: a softplus of the penetration -gap. Bodies at rest
// against a wall spend most of a step here.
double contact_force(double gap) {
  constexpr double kUnit = kContactMargin * kContactForce;
  const double x = gap * (-1.0 / kContactMargin);
  if (x < -kSharp) return 0.0;
  if (x > kSharp) return x * kUnit;
  const double e = std::exp(-std::fabs(x));
  // The series of log1p is exact to double precision where e is small, and several times faster.
  const double tail = e < 1e-5 ? e * (1 - e * (0.5 - e / 3)) : std::log1p(e);
  return (x > 0 ? x + tail : tail) * kUnit;
}

// Force of the two walls across one axis on a body of radius `size`. A body on the very line of a
// wall is pushed inwards; one behind it is pushed out, which clipped actions cannot bring about.
double wall_force(double coordinate, double size) {
  const double reach = size + kWallSize;
  if (std::fabs(coordinate) < kWall - reach - kSharp * kContactMargin) return 0.0;
  double force = 0.0;
  for (const double wall : {kWall, -kWall}) {
    const double offset = coordinate - wall;
    const bool upwards = offset > 0 || (offset == 0 && wall < 0);
    const double push = contact_force(std::fabs(offset) - reach);
    force += upwards ? push : -push;
  }
  return force;
}

// Equal and opposite forces between every two colliding bodies of one copy.
void add_collisions(const Bodies& bodies, const double* position, double* force) {
  for (int64_t a = 0; a < bodies.count; ++a) {
    if (!bodies.collides[a]) continue;
    for (int64_t b = a + 1; b < bodies.count; ++b) {
      if (!bodies.collides[b]) continue;
      const double dx = position[2 * a] - position[2 * b];
      const double dy = position[2 * a + 1] - position[2 * b + 1];
      const double touch = bodies.size[a] + bodies.size[b];
      const double reach = touch + kSharp * kContactMargin;
      const double square = dx * dx + dy * dy;
      if (square > reach * reach) continue;
      const double distance = std::sqrt(square);
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

}  // namespace

void step(const Bodies& bodies, int64_t copies, const double* actions, double* position,
          double* velocity) {
  const int64_t row = 2 * bodies.count;
  std::vector<double> force(row);
  bool any_collides = false;
  for (int64_t b = 0; b < bodies.count; ++b) any_collides |= bodies.collides[b];

  for (int64_t copy = 0; copy < copies; ++copy) {
    const double* action = actions + copy * row;
    double* pos = position + copy * row;
    double* vel = velocity + copy * row;
    for (int64_t b = 0; b < bodies.count; ++b) {
      for (int64_t axis = 0; axis < 2; ++axis) {
        const int64_t i = 2 * b + axis;
        force[i] = action[i] * bodies.acceleration[b] + wall_force(pos[i], bodies.size[b]);
      }
    }
    if (any_collides) add_collisions(bodies, pos, force.data());
    for (int64_t b = 0; b < bodies.count; ++b) {
      double vx = vel[2 * b] * (1 - kDamping) + force[2 * b] * kTimeStep;
      double vy = vel[2 * b + 1] * (1 - kDamping) + force[2 * b + 1] * kTimeStep;
      const double speed = std::sqrt(vx * vx + vy * vy);
      if (speed > bodies.max_speed[b]) {
        vx *= bodies.max_speed[b] / speed;
        vy *= bodies.max_speed[b] / speed;
      }
      vel[2 * b] = vx;
      vel[2 * b + 1] = vy;
      pos[2 * b] += vx * kTimeStep;
      pos[2 * b + 1] += vy * kTimeStep;
    }
  }
}

}  // namespace mg2l::particle
