// Many warehouses of robots, stepped together, equal step by step to the package rware 2
// (Papoudakis et al., 2021, arXiv:2006.07869).
//
// A cell is an index into a grid with a border as wide as robots see, so that no window needs a
// bounds check. Robots and shelves are numbered from 1 in a grid; 0 is nothing.

#pragma once

#include <cstdint>
#include <vector>

#include "../simulators/random.h"

namespace mg2l::warehouse {

enum Action : int64_t { kStay, kForward, kLeft, kRight, kToggle, kActions };
enum Direction : int32_t { kUp, kDown, kWest, kEast, kDirections };
enum class Reward { kIndividual, kGlobal, kTwoStage };

constexpr int64_t kSelf = 8;  // numbers of an observation about the robot itself
constexpr int64_t kCell = 7;  // and about each cell that it sees

// A warehouse and what its goals pay, the same in every environment that is given it.
struct Layout {
  int32_t height, width;
  std::vector<uint8_t> corridor;  // [height * width], goals included
  std::vector<int32_t> shelves;   // place of each shelf, y * width + x, in ascending order
  std::vector<int32_t> goals;     // likewise
  std::vector<float> pay;         // of a delivery to each goal; 1 in the package
};

struct Robot {
  int32_t x, y;
  int32_t direction;
  int32_t shelf;      // carried, or 0
  int32_t delivered;  // 1: brought its shelf to a goal and has not put it back yet
};

struct Shelf {
  int32_t x, y;
};

class Warehouses {
 public:
  Warehouses(std::vector<Layout> layouts, int64_t envs, int64_t robots, int64_t reach,
             int64_t requests, Reward reward, float lift_pay);

  // Puts an environment into a layout: shelves in their places, and robots and requests as given.
  // Which shelf is requested next is drawn from `random`, whose generator must outlive the episode.
  //   cells:      [A] y * width + x, all different
  //   directions: [A]
  //   requests:   [Q] shelves, from 1, all different
  void begin(int64_t env, int64_t layout, const int64_t* cells, const int64_t* directions,
             const int64_t* requests, const Random& random);

  // Puts an environment into a layout in any state.
  //   robots:  [A, 5] as Robot; shelves: [S, 2] as Shelf, rows past the layout's ignored
  void restore(int64_t env, int64_t layout, const int64_t* robots, const int64_t* shelves,
               const int64_t* requests, const Random& random);

  // Advances every environment. actions: [N, A] in [0, kActions); rewards: [N, A], written.
  void step(const int64_t* actions, float* rewards);

  // Writes what every robot sees, [N, A, observation()].
  void observe(float* out) const;

  int64_t envs() const { return envs_; }
  int64_t robots() const { return robots_; }
  int64_t requests() const { return requests_; }
  int64_t observation() const { return kSelf + kCell * (2 * reach_ + 1) * (2 * reach_ + 1); }
  int64_t max_shelves() const { return max_shelves_; }
  const std::vector<Layout>& layouts() const { return layouts_; }

  // State, as `begin` and `restore` take it.
  const Robot* robots_of(int64_t env) const { return &robot_[env * robots_]; }
  const Shelf* shelves_of(int64_t env) const { return &shelf_[env * max_shelves_]; }
  const int32_t* requests_of(int64_t env) const { return &request_[env * requests_]; }
  int64_t layout_of(int64_t env) const { return layout_[env]; }

 private:
  int64_t cell(int64_t x, int64_t y) const { return (y + reach_) * stride_ + x + reach_; }
  const Layout& layout(int64_t env) const { return layouts_[layout_[env]]; }
  void draw_grids(int64_t env);
  void pay(float amount, int64_t robot, float* rewards) const;
  void move(int64_t env, const int64_t* actions, float* rewards);
  void deliver(int64_t env, float* rewards);

  std::vector<Layout> layouts_;
  int64_t envs_, robots_, reach_, requests_, max_shelves_, stride_, cells_;
  Reward reward_;
  float lift_pay_;                   // for lifting a requested shelf; 0 in the package
  std::vector<int64_t> layout_;      // [N]
  std::vector<Random> random_;       // [N]
  std::vector<Robot> robot_;         // [N, A]
  std::vector<Shelf> shelf_;         // [N, max_shelves]
  std::vector<int32_t> request_;     // [N, Q]
  std::vector<uint8_t> requested_;   // [N, 1 + max_shelves]
  std::vector<int32_t> robots_at_;   // [N, cells]
  std::vector<int32_t> shelves_at_;  // [N, cells]
  std::vector<float> nothing_;       // what a robot sees of empty cells
};

// Who of the robots that go forward may do so. A robot's wish is an edge from its cell to another,
// or to its own. Robots on a cycle of more than two move; of those that lead to one free cell, the
// longest queue; no other robot.
//
//   from, to: [count] cells as (y << 16 | x), `from` all different
//   moves:    [count], written
void resolve(const int32_t* from, const int32_t* to, int64_t count, uint8_t* moves);

}  // namespace mg2l::warehouse
