// `Warehouses` as C functions; called by envs/rware/simulator.py.
#include "../simulators/api.h"

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "warehouse.h"

namespace mg2l::warehouse {

// Warehouses in layouts whose cells, and what their goals pay, follow each other without gaps.
// Null where memory is short.
MG2L_EXPORT Warehouses* mg2l_warehouse_new(
    int64_t layouts,
    const int32_t* sides,  // [layouts, 2] height and width
    const char* cells,     // of all layouts row by row: x shelf, g goal, . free
    const float* pay,      // of all goals, row by row
    int64_t envs, int64_t robots, int64_t reach, int64_t requests, int32_t reward,
    float lift_pay) noexcept try {
  std::vector<Layout> found;
  for (int64_t i = 0; i < layouts; ++i, sides += 2) {
    Layout layout{sides[0], sides[1], {}, {}, {}, {}};
    for (int32_t cell = 0; cell < sides[0] * sides[1]; ++cell) {
      const char kind = *cells++;
      layout.corridor.push_back(kind != 'x');
      if (kind == 'x') layout.shelves.push_back(cell);
      if (kind == 'g') layout.goals.push_back(cell);
      if (kind == 'g') layout.pay.push_back(*pay++);
    }
    found.push_back(std::move(layout));
  }
  return new Warehouses(std::move(found), envs, robots, reach, requests,
                        static_cast<Reward>(reward), lift_pay);
} catch (const std::bad_alloc&) {
  return nullptr;
}

MG2L_EXPORT void mg2l_warehouse_delete(Warehouses* all) noexcept { delete all; }

// See Warehouses::begin and ::restore.
MG2L_EXPORT void mg2l_warehouse_begin(Warehouses* all, int64_t env, int64_t layout,
                                      const int64_t* cells,       // [A]
                                      const int64_t* directions,  // [A]
                                      const int64_t* requests,    // [Q]
                                      const BitGenerator* bits) noexcept {
  all->begin(env, layout, cells, directions, requests, Random(bits));
}

MG2L_EXPORT void mg2l_warehouse_restore(Warehouses* all, int64_t env, int64_t layout,
                                        const int64_t* robots,    // [A, 5]
                                        const int64_t* shelves,   // [S, 2]
                                        const int64_t* requests,  // [Q]
                                        const BitGenerator* bits) noexcept {
  all->restore(env, layout, robots, shelves, requests, Random(bits));
}

// Advances all warehouses. Returns -1, or the place of an action that is none, and nothing has
// changed.
MG2L_EXPORT int64_t mg2l_warehouse_step(Warehouses* all,
                                        const int64_t* actions,     // [N, A]
                                        float* rewards) noexcept {  // [N, A], written
  const int64_t wrong = mg2l_find_outside(actions, all->envs() * all->robots(), 0, kActions);
  if (wrong >= 0) return wrong;
  all->step(actions, rewards);
  return -1;
}

MG2L_EXPORT void mg2l_warehouse_observe(const Warehouses* all, float* out) noexcept {
  all->observe(out);
}

// State of all warehouses, as `restore` takes it.
MG2L_EXPORT void mg2l_warehouse_state(const Warehouses* all,
                                      int64_t* robots,               // [N, A, 5]
                                      int64_t* shelves,              // [N, S, 2]
                                      int64_t* requests) noexcept {  // [N, Q]
  for (int64_t env = 0; env < all->envs(); ++env) {
    for (int64_t a = 0; a < all->robots(); ++a) {
      const Robot& r = all->robots_of(env)[a];
      for (const int32_t value : {r.x, r.y, r.direction, r.shelf, r.delivered}) *robots++ = value;
    }
    for (int64_t s = 0; s < all->max_shelves(); ++s) {
      const Shelf& shelf = all->shelves_of(env)[s];
      *shelves++ = shelf.x;
      *shelves++ = shelf.y;
    }
    requests = std::copy_n(all->requests_of(env), all->requests(), requests);
  }
}

}  // namespace mg2l::warehouse
