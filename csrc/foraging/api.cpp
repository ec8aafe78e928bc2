// `Foraging` as C functions; called by envs/lbf/simulator.py.
#include "../simulators/api.h"

#include <algorithm>
#include <new>

#include "foraging.h"

namespace mg2l::foraging {

// Null where memory is short.
MG2L_EXPORT Foraging* mg2l_foraging_new(int64_t envs, int32_t size, int32_t players, int32_t foods,
                                        int32_t kinds, int32_t max_level, int32_t sight,
                                        bool cooperative, double penalty) noexcept try {
  return new Foraging({size, players, foods, kinds, max_level, sight, cooperative, penalty}, envs);
} catch (const std::bad_alloc&) {
  return nullptr;
}

MG2L_EXPORT void mg2l_foraging_delete(Foraging* all) noexcept { delete all; }

// See Foraging::begin and ::restore.
MG2L_EXPORT void mg2l_foraging_begin(Foraging* all, int64_t env,
                                     const BitGenerator* bits) noexcept {
  all->begin(env, Random(bits));
}

MG2L_EXPORT void mg2l_foraging_restore(Foraging* all, int64_t env,
                                       const int64_t* players,  // [A, 3]
                                       const int64_t* levels,   // [size, size]
                                       const int64_t* kinds,    // [size, size]
                                       int64_t spawned) noexcept {
  all->restore(env, players, levels, kinds, spawned);
}

// Advances all sub-environments. Returns -1, or the place of an action that is none, and nothing
// has changed.
MG2L_EXPORT int64_t mg2l_foraging_step(Foraging* all,
                                       const int64_t* actions,  // [N, A]
                                       double* rewards,         // [N, A], written, as the rest
                                       int64_t* eaten,          // [N, A]
                                       bool* over) noexcept {   // [N]
  const int64_t wrong = mg2l_find_outside(actions, all->envs() * all->rules().players, 0, kActions);
  if (wrong >= 0) return wrong;
  all->step(actions, rewards, eaten, over);
  return -1;
}

MG2L_EXPORT void mg2l_foraging_observe(const Foraging* all, float* out) noexcept {
  all->observe(out);
}

MG2L_EXPORT void mg2l_foraging_spawned(const Foraging* all, int64_t* spawned) noexcept {  // [N]
  for (int64_t env = 0; env < all->envs(); ++env) spawned[env] = all->spawned(env);
}

// State of all sub-environments, as `restore` takes it.
MG2L_EXPORT void mg2l_foraging_state(const Foraging* all,
                                     int64_t* players,           // [N, A, 3]
                                     int64_t* levels,            // [N, size, size]
                                     int64_t* kinds) noexcept {  // [N, size, size]
  for (int64_t env = 0; env < all->envs(); ++env) {
    for (int32_t a = 0; a < all->rules().players; ++a) {
      const Player& p = all->players_of(env)[a];
      for (const int32_t value : {p.row, p.column, p.level}) *players++ = value;
    }
    levels = std::copy_n(all->levels_of(env), all->cells(), levels);
    kinds = std::copy_n(all->kinds_of(env), all->cells(), kinds);
  }
}

}  // namespace mg2l::foraging
