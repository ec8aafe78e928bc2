// Level-based foraging, all sub-environments stepped at once, equal step by step to the package
// lbforaging 2 (Christianos et al., 2020, arXiv:2006.07169), whose foods have kinds here besides.

#pragma once

#include <cstdint>
#include <vector>

#include "../simulators/random.h"

namespace mg2l::foraging {

enum Action : int64_t { kStay, kNorth, kSouth, kWest, kEast, kLoad, kActions };

struct Rules {
  int32_t size;     // side of the field [cells]
  int32_t players;  // at least 1
  int32_t foods;
  int32_t kinds;      // of foods: as many of each as of any other, or one more
  int32_t max_level;  // of a player
  int32_t sight;      // cells that a player sees in each direction
  bool cooperative;   // every food needs the three weakest players
  double penalty;     // for trying to load what is too heavy
};

struct Player {
  int32_t row, column, level;
};

class Foraging {
 public:
  Foraging(const Rules& rules, int64_t envs);

  // Begins an episode: places and levels of players and foods drawn as by the package, and then
  // the kinds of the foods, in the order of their cells.
  void begin(int64_t env, const Random& random);

  // Puts a sub-environment into any state.
  //   players: [A, 3] as Player; levels, kinds: [size, size] of the food in each cell, level 0 for
  //   none; spawned: levels of all foods that the episode began with
  void restore(int64_t env, const int64_t* players, const int64_t* levels, const int64_t* kinds,
               int64_t spawned);

  // Advances every sub-environment.
  //   actions: [N, A] in [0, kActions)
  //   rewards: [N, A], written: what the package pays
  //   eaten:   [N, A], written: kind of the food that a player has helped to load, or -1
  //   over:    [N], written: whether no food is left
  void step(const int64_t* actions, double* rewards, int64_t* eaten, bool* over);

  // Writes what every player sees, [N, A, observation()].
  void observe(float* out) const;

  const Rules& rules() const { return rules_; }
  int64_t envs() const { return envs_; }
  int64_t cells() const { return int64_t{rules_.size} * rules_.size; }
  int64_t observation() const {
    return int64_t{3} * (rules_.foods + rules_.players) + int64_t{rules_.foods} * rules_.kinds;
  }

  // State, as `restore` takes it.
  const Player* players_of(int64_t env) const { return &player_[env * rules_.players]; }
  const int32_t* levels_of(int64_t env) const { return &level_[env * cells()]; }
  const int32_t* kinds_of(int64_t env) const { return &kind_[env * cells()]; }
  int64_t spawned(int64_t env) const { return spawned_[env]; }

 private:
  void place_players(Player* players, const Random& random) const;
  void place_foods(const Player* players, int32_t* levels, const Random& random) const;
  bool empty(const Player* players, int32_t placed, int32_t row, int32_t column) const;
  int32_t food_beside(const int32_t* levels, const Player& player) const;
  void move(int64_t env, const int64_t* actions, uint8_t* loading);
  void load(int64_t env, uint8_t* loading, double* rewards, int64_t* eaten);

  Rules rules_;
  int64_t envs_;
  std::vector<Player> player_;    // [N, A]
  std::vector<int32_t> level_;    // [N, cells], 0 where there is no food
  std::vector<int32_t> kind_;     // [N, cells], 0 where there is no food
  std::vector<int64_t> spawned_;  // [N]
};

}  // namespace mg2l::foraging
