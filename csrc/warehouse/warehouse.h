// Warehouses of robots, all copies stepped at once, equal step by step to the package rware 2
// (Papoudakis et al., 2021, arXiv:2006.07869).
//
// A cell is an index into a grid with a border as wide as robots see, so that no window needs a
// bounds check. Robots and shelves are numbered from 1 in a grid; 0 is nothing.

#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace mg2l::warehouse {

enum Action : int64_t { kStay, kForward, kLeft, kRight, kToggle, kActions };
enum Direction : int32_t { kUp, kDown, kWest, kEast, kDirections };
enum class Reward { kIndividual, kGlobal, kTwoStage };

constexpr int64_t kSelf = 8;  // numbers of an observation about the robot itself
constexpr int64_t kCell = 7;  // and about each cell that it sees

// The cells of a warehouse, the same in every copy that is given it.
struct Layout {
  int32_t height, width;
  std::vector<uint8_t> corridor;  // [height * width], goals included
  std::vector<int32_t> shelves;   // place of each shelf, y * width + x, in ascending order
  std::vector<int32_t> goals;     // likewise
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
  // Draws which of `count` shelves is requested next in a copy, in [0, count).
  using Draw = std::function<int64_t(int64_t copy, int64_t count)>;

  Warehouses(std::vector<Layout> layouts, int64_t copies, int64_t robots, int64_t reach,
             int64_t requests, Reward reward);

  // Puts a copy into a layout: shelves in their places, and robots and requests as given.
  //   cells:      [A] y * width + x, all different
  //   directions: [A]
  //   requests:   [Q] shelves, from 1, all different
  void begin(int64_t copy, int64_t layout, const int64_t* cells, const int64_t* directions,
             const int64_t* requests);

  // Puts a copy into a layout in any state.
  //   robots:  [A, 5] as Robot; shelves: [S, 2] as Shelf, rows past the layout's ignored
  void restore(int64_t copy, int64_t layout, const int64_t* robots, const int64_t* shelves,
               const int64_t* requests);

  // Advances every copy. actions: [N, A] in [0, kActions); rewards: [N, A], written.
  void step(const int64_t* actions, float* rewards, const Draw& draw);

  // Writes what every robot sees, [N, A, observation()].
  void observe(float* out) const;

  int64_t copies() const { return copies_; }
  int64_t robots() const { return robots_; }
  int64_t requests() const { return requests_; }
  int64_t observation() const { return kSelf + kCell * (2 * reach_ + 1) * (2 * reach_ + 1); }
  int64_t max_shelves() const { return max_shelves_; }
  const std::vector<Layout>& layouts() const { return layouts_; }

  // State, as `begin` and `restore` take it.
  const Robot* robots_of(int64_t copy) const { return &robot_[copy * robots_]; }
  const Shelf* shelves_of(int64_t copy) const { return &shelf_[copy * max_shelves_]; }
  const int32_t* requests_of(int64_t copy) const { return &request_[copy * requests_]; }
  int64_t layout_of(int64_t copy) const { return layout_[copy]; }

 private:
  int64_t cell(int64_t x, int64_t y) const { return (y + reach_) * stride_ + x + reach_; }
  const Layout& layout(int64_t copy) const { return layouts_[layout_[copy]]; }
  void draw_grids(int64_t copy);
  void move(int64_t copy, const int64_t* actions, float* rewards);
  void deliver(int64_t copy, float* rewards, const Draw& draw);

  std::vector<Layout> layouts_;
  int64_t copies_, robots_, reach_, requests_, max_shelves_, stride_, cells_;
  Reward reward_;
  std::vector<int64_t> layout_;      // [N]
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
// longest queue; nobody else.
//
//   from, to: [count] cells as (y << 16 | x), `from` all different
//   moves:    [count], written
void resolve(const int32_t* from, const int32_t* to, int64_t count, uint8_t* moves);

}  // namespace mg2l::warehouse
