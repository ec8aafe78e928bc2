// Physics of the particle world: discs in a square with soft walls.
//
// Arrays hold all copies of the world at once, copy-major: [N, B, 2] for N copies of B bodies.
// Everything is computed in double precision: contacts are stiff, and rounding to float at every
// step would let trajectories drift apart within an episode.

#pragma once

#include <cstdint>

namespace mg2l::particle {

constexpr double kTimeStep = 0.1;        // [s]
constexpr double kDamping = 0.25;        // part of the velocity lost at every step
constexpr double kContactForce = 100.0;  // force per unit of penetration
constexpr double kContactMargin = 1e-3;  // length over which a contact softens
constexpr double kWall = 1.2;            // the four walls are the lines x, y = +-kWall
constexpr double kWallSize = 0.2;        // half thickness of a wall

// What a body is, the same in every copy; arrays of length `count`. All masses are 1.
struct Bodies {
  int64_t count;
  const double* acceleration;  // force of an action of length 1
  const double* size;          // radius
  const double* max_speed;     // infinity: no limit
  const bool* collides;        // touches other bodies that collide; walls push every body
};

// Advances `copies` worlds by one step of kTimeStep: first velocities, then positions.
void step(const Bodies& bodies, int64_t copies,
          const double* actions,  // [N, B, 2] in [-1, 1]
          double* position,       // [N, B, 2], read and written
          double* velocity);      // [N, B, 2], read and written

}  // namespace mg2l::particle
