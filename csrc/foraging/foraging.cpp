#include "foraging.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

namespace mg2l::foraging {
namespace {

constexpr int32_t kAttempts = 1000;  // of the package, to find an empty cell
constexpr int32_t kNone = -1;

bool beside(const Player& player, int32_t row, int32_t column) {
  return std::abs(player.row - row) + std::abs(player.column - column) == 1;
}

}  // namespace

Foraging::Foraging(const Rules& rules, int64_t envs)
    : rules_(rules),
      envs_(envs),
      player_(envs * rules.players),
      level_(envs * cells()),
      kind_(envs * cells()),
      spawned_(envs, 1) {}

void Foraging::begin(int64_t env, const Random& random) {
  Player* players = &player_[env * rules_.players];
  int32_t* levels = &level_[env * cells()];
  int32_t* kinds = &kind_[env * cells()];
  std::fill(levels, levels + cells(), 0);
  std::fill(kinds, kinds + cells(), 0);
  place_players(players, random);
  place_foods(players, levels, random);
  spawned_[env] = std::accumulate(levels, levels + cells(), int64_t{0});
  const std::vector<int32_t> order = random.permutation(rules_.foods);
  size_t food = 0;
  for (int64_t cell = 0; cell < cells(); ++cell) {
    if (levels[cell] != 0) kinds[cell] = order[food++] % rules_.kinds;
  }
}

bool Foraging::empty(const Player* players, int32_t placed, int32_t row, int32_t column) const {
  return std::none_of(players, players + placed, [&](const Player& player) {
    return player.row == row && player.column == column;
  });
}

void Foraging::place_players(Player* players, const Random& random) const {
  random.permutation(rules_.players);  // of the players' bounds of levels, which are the same
  for (int32_t a = 0; a < rules_.players; ++a) {
    for (int32_t attempt = 0; attempt < kAttempts; ++attempt) {
      const int32_t row = random.integer(0, rules_.size);
      const int32_t column = random.integer(0, rules_.size);
      if (!empty(players, a, row, column)) continue;
      players[a] = {row, column, random.integer(1, rules_.max_level + 1)};
      break;
    }
  }
}

void Foraging::place_foods(const Player* players, int32_t* levels, const Random& random) const {
  const int32_t size = rules_.size;
  std::vector<int32_t> strength(rules_.players);
  for (int32_t a = 0; a < rules_.players; ++a) strength[a] = players[a].level;
  std::sort(strength.begin(), strength.end());
  const int32_t highest =
      std::accumulate(strength.begin(), strength.begin() + std::min(3, rules_.players), 0);
  const int32_t lowest = rules_.cooperative ? highest : 1;
  random.permutation(rules_.foods);  // likewise of the foods' bounds

  const auto food_at = [&](int32_t row, int32_t column) {
    return row >= 0 && row < size && column >= 0 && column < size && levels[row * size + column];
  };
  const auto crowded = [&](int32_t row, int32_t column) {
    for (int32_t r = -1; r <= 1; ++r) {
      for (int32_t c = -1; c <= 1; ++c) {
        if (food_at(row + r, column + c)) return true;
      }
    }
    return food_at(row - 2, column) || food_at(row + 2, column) || food_at(row, column - 2) ||
           food_at(row, column + 2);
  };
  int32_t placed = 0;
  for (int32_t attempt = 0; attempt < kAttempts && placed < rules_.foods; ++attempt) {
    const int32_t row = random.integer(1, size - 1);
    const int32_t column = random.integer(1, size - 1);
    if (crowded(row, column) || !empty(players, rules_.players, row, column)) continue;
    levels[row * size + column] = random.integer(lowest, highest + 1);
    ++placed;
  }
}

void Foraging::restore(int64_t env, const int64_t* players, const int64_t* levels,
                       const int64_t* kinds, int64_t spawned) {
  for (int32_t a = 0; a < rules_.players; ++a, players += 3) {
    player_[env * rules_.players + a] = {static_cast<int32_t>(players[0]),
                                         static_cast<int32_t>(players[1]),
                                         static_cast<int32_t>(players[2])};
  }
  std::copy(levels, levels + cells(), &level_[env * cells()]);
  std::copy(kinds, kinds + cells(), &kind_[env * cells()]);
  spawned_[env] = spawned;
}

// The cell of the food beside a player, or kNone: foods are too distant for more than one.
int32_t Foraging::food_beside(const int32_t* levels, const Player& player) const {
  const int32_t size = rules_.size;
  const int32_t cell = player.row * size + player.column;
  if (player.row > 0 && levels[cell - size] != 0) return cell - size;
  if (player.row < size - 1 && levels[cell + size] != 0) return cell + size;
  if (player.column > 0 && levels[cell - 1] != 0) return cell - 1;
  if (player.column < size - 1 && levels[cell + 1] != 0) return cell + 1;
  return kNone;
}

void Foraging::step(const int64_t* actions, double* rewards, int64_t* eaten, bool* over) {
  const int32_t players = rules_.players;
  std::fill(rewards, rewards + envs_ * players, 0.0);
  std::fill(eaten, eaten + envs_ * players, int64_t{kNone});
  std::vector<uint8_t> loading(players);
  for (int64_t env = 0; env < envs_; ++env) {
    move(env, actions + env * players, loading.data());
    load(env, loading.data(), rewards + env * players, eaten + env * players);
    const int32_t* levels = levels_of(env);
    over[env] = std::all_of(levels, levels + cells(), [](int32_t level) { return level == 0; });
  }
}

// A player that alone wants a cell moves there, occupied or not: as in the package, one
// who stays because of a third may then share its cell.
void Foraging::move(int64_t env, const int64_t* actions, uint8_t* loading) {
  const int32_t size = rules_.size;
  Player* players = &player_[env * rules_.players];
  const int32_t* levels = levels_of(env);
  thread_local std::vector<int32_t> wanted;
  wanted.resize(rules_.players);
  for (int32_t a = 0; a < rules_.players; ++a) {
    int32_t row = players[a].row;
    int32_t column = players[a].column;
    if (actions[a] == kNorth) row = std::max(0, row - 1);
    if (actions[a] == kSouth) row = std::min(size - 1, row + 1);
    if (actions[a] == kWest) column = std::max(0, column - 1);
    if (actions[a] == kEast) column = std::min(size - 1, column + 1);
    wanted[a] = row * size + column;
    if (levels[wanted[a]] != 0) wanted[a] = players[a].row * size + players[a].column;
    loading[a] = actions[a] == kLoad && food_beside(levels, players[a]) != kNone;
  }
  for (int32_t a = 0; a < rules_.players; ++a) {
    if (std::count(wanted.begin(), wanted.end(), wanted[a]) > 1) continue;
    players[a].row = wanted[a] / size;
    players[a].column = wanted[a] % size;
  }
}

void Foraging::load(int64_t env, uint8_t* loading, double* rewards, int64_t* eaten) {
  const int32_t size = rules_.size;
  const Player* players = players_of(env);
  int32_t* levels = &level_[env * cells()];
  thread_local std::vector<int32_t> team;
  for (int32_t a = 0; a < rules_.players; ++a) {
    if (!loading[a]) continue;
    const int32_t cell = food_beside(levels, players[a]);
    if (cell == kNone) continue;  // another one has just eaten it, if foods were put close together
    int32_t strength = 0;
    team.clear();
    for (int32_t b = a; b < rules_.players; ++b) {
      if (!loading[b] || !beside(players[b], cell / size, cell % size)) continue;
      strength += players[b].level;
      team.push_back(b);
      loading[b] = 0;
    }
    for (const int32_t b : team) {
      if (strength < levels[cell]) {
        rewards[b] -= rules_.penalty;
      } else {
        rewards[b] = static_cast<double>(players[b].level * levels[cell]) /
                     static_cast<double>(strength * spawned_[env]);
        eaten[b] = kinds_of(env)[cell];
      }
    }
    if (strength < levels[cell]) continue;
    levels[cell] = 0;
    kind_[env * cells() + cell] = 0;
  }
}

void Foraging::observe(float* out) const {
  const int32_t size = rules_.size;
  const int32_t sight = rules_.sight;
  for (int64_t env = 0; env < envs_; ++env) {
    const Player* players = players_of(env);
    const int32_t* levels = levels_of(env);
    const int32_t* kinds = kinds_of(env);
    for (int32_t a = 0; a < rules_.players; ++a, out += observation()) {
      const Player& self = players[a];
      const int32_t top = std::max(0, self.row - sight);
      const int32_t left = std::max(0, self.column - sight);
      float* const other = out + 3 * rules_.foods;
      float* const kind = other + 3 * rules_.players;
      std::fill(out, out + observation(), 0.0f);
      for (float* slot = out; slot < kind; slot += 3) slot[0] = slot[1] = -1.0f;  // nothing seen
      int32_t seen = 0;
      for (int32_t row = top; row < std::min(size, self.row + sight + 1); ++row) {
        for (int32_t column = left; column < std::min(size, self.column + sight + 1); ++column) {
          const int32_t cell = row * size + column;
          if (levels[cell] == 0) continue;
          float* const slot = out + 3 * seen;
          slot[0] = static_cast<float>(row - top);
          slot[1] = static_cast<float>(column - left);
          slot[2] = static_cast<float>(levels[cell]);
          kind[seen * rules_.kinds + kinds[cell]] = 1.0f;
          ++seen;
        }
      }
      int32_t met = 0;
      const auto show = [&](const Player& player) {
        const int32_t row = player.row - top;
        const int32_t column = player.column - left;
        if (row < 0 || column < 0 || row > 2 * sight || column > 2 * sight) return;
        float* const slot = other + 3 * met++;
        slot[0] = static_cast<float>(row);
        slot[1] = static_cast<float>(column);
        slot[2] = static_cast<float>(player.level);
      };
      show(self);
      for (int32_t b = 0; b < rules_.players; ++b) {
        if (b != a) show(players[b]);
      }
    }
  }
}

}  // namespace mg2l::foraging
