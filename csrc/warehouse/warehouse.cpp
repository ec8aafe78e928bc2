#include "warehouse.h"

#include <algorithm>
#include <array>
#include <utility>

namespace mg2l::warehouse {
namespace {

constexpr std::array<int32_t, kDirections> kRightOf = {kEast, kWest, kUp, kDown};
constexpr std::array<int32_t, kDirections> kLeftOf = {kWest, kEast, kDown, kUp};

int32_t packed(int32_t x, int32_t y) { return y << 16 | x; }

}  // namespace

Warehouses::Warehouses(std::vector<Layout> layouts, int64_t envs, int64_t robots, int64_t reach,
                       int64_t requests, Reward reward, float lift_pay)
    : layouts_(std::move(layouts)),
      envs_(envs),
      robots_(robots),
      reach_(reach),
      requests_(requests),
      max_shelves_(0),
      reward_(reward),
      lift_pay_(lift_pay) {
  int64_t height = 0;
  int64_t width = 0;
  for (const Layout& layout : layouts_) {
    height = std::max<int64_t>(height, layout.height);
    width = std::max<int64_t>(width, layout.width);
    max_shelves_ = std::max<int64_t>(max_shelves_, layout.shelves.size());
  }
  stride_ = width + 2 * reach;
  cells_ = stride_ * (height + 2 * reach);
  layout_.assign(envs, 0);
  random_.resize(envs);
  robot_.resize(envs * robots);
  shelf_.resize(envs * max_shelves_);
  request_.assign(envs * requests, 0);
  requested_.assign(envs * (1 + max_shelves_), 0);
  robots_at_.assign(envs * cells_, 0);
  shelves_at_.assign(envs * cells_, 0);
  nothing_.assign(observation(), 0.0f);
  for (size_t i = kSelf; i < nothing_.size(); i += kCell) nothing_[i + 1] = 1.0f;  // faces up
}

void Warehouses::begin(int64_t env, int64_t index, const int64_t* cells, const int64_t* directions,
                       const int64_t* requests, const Random& random) {
  layout_[env] = index;
  random_[env] = random;
  const Layout& layout = layouts_[index];
  for (int64_t a = 0; a < robots_; ++a) {
    const auto cell = static_cast<int32_t>(cells[a]);
    robot_[env * robots_ + a] = {cell % layout.width, cell / layout.width,
                                 static_cast<int32_t>(directions[a]), 0, 0};
  }
  Shelf* shelf = &shelf_[env * max_shelves_];
  std::fill(shelf, shelf + max_shelves_, Shelf{0, 0});
  for (const int32_t cell : layout.shelves) *shelf++ = {cell % layout.width, cell / layout.width};
  std::copy(requests, requests + requests_, &request_[env * requests_]);
  draw_grids(env);
}

void Warehouses::restore(int64_t env, int64_t index, const int64_t* robots, const int64_t* shelves,
                         const int64_t* requests, const Random& random) {
  layout_[env] = index;
  random_[env] = random;
  for (int64_t a = 0; a < robots_; ++a, robots += 5) {
    robot_[env * robots_ + a] = {static_cast<int32_t>(robots[0]), static_cast<int32_t>(robots[1]),
                                 static_cast<int32_t>(robots[2]), static_cast<int32_t>(robots[3]),
                                 static_cast<int32_t>(robots[4])};
  }
  for (int64_t s = 0; s < max_shelves_; ++s, shelves += 2) {
    shelf_[env * max_shelves_ + s] = {static_cast<int32_t>(shelves[0]),
                                      static_cast<int32_t>(shelves[1])};
  }
  std::copy(requests, requests + requests_, &request_[env * requests_]);
  draw_grids(env);
}

void Warehouses::draw_grids(int64_t env) {
  int32_t* robots = &robots_at_[env * cells_];
  int32_t* shelves = &shelves_at_[env * cells_];
  std::fill(robots, robots + cells_, 0);
  std::fill(shelves, shelves + cells_, 0);
  const auto count = static_cast<int64_t>(layout(env).shelves.size());
  for (int64_t s = 0; s < count; ++s) {
    const Shelf& shelf = shelf_[env * max_shelves_ + s];
    shelves[cell(shelf.x, shelf.y)] = static_cast<int32_t>(s + 1);
  }
  for (int64_t a = 0; a < robots_; ++a) {
    const Robot& robot = robot_[env * robots_ + a];
    robots[cell(robot.x, robot.y)] = static_cast<int32_t>(a + 1);
  }
  uint8_t* requested = &requested_[env * (1 + max_shelves_)];
  std::fill(requested, requested + 1 + max_shelves_, uint8_t{0});
  for (int64_t q = 0; q < requests_; ++q) requested[request_[env * requests_ + q]] = 1;
}

void Warehouses::step(const int64_t* actions, float* rewards) {
  std::fill(rewards, rewards + envs_ * robots_, 0.0f);
  for (int64_t env = 0; env < envs_; ++env) {
    move(env, actions + env * robots_, rewards + env * robots_);
    deliver(env, rewards + env * robots_);
  }
}

// What a robot has earned, for itself or for all.
void Warehouses::pay(float amount, int64_t robot, float* rewards) const {
  if (reward_ == Reward::kGlobal) {
    for (int64_t a = 0; a < robots_; ++a) rewards[a] += amount;
  } else {
    rewards[robot] += amount;
  }
}

void Warehouses::move(int64_t env, const int64_t* actions, float* rewards) {
  const Layout& place = layout(env);
  Robot* robots = &robot_[env * robots_];
  Shelf* shelves = &shelf_[env * max_shelves_];
  int32_t* robots_at = &robots_at_[env * cells_];
  int32_t* shelves_at = &shelves_at_[env * cells_];
  const uint8_t* requested = &requested_[env * (1 + max_shelves_)];
  thread_local std::vector<int32_t> from, to;
  thread_local std::vector<uint8_t> moves;
  from.resize(robots_);
  to.resize(robots_);
  moves.resize(robots_);

  bool anybody = false;
  for (int64_t a = 0; a < robots_; ++a) {
    const Robot& robot = robots[a];
    from[a] = to[a] = packed(robot.x, robot.y);
    if (actions[a] != kForward) continue;
    int32_t x = robot.x;
    int32_t y = robot.y;
    if (robot.direction == kUp) y = std::max(0, y - 1);
    if (robot.direction == kDown) y = std::min(place.height - 1, y + 1);
    if (robot.direction == kWest) x = std::max(0, x - 1);
    if (robot.direction == kEast) x = std::min(place.width - 1, x + 1);
    const int64_t target = cell(x, y);
    const int32_t other = robots_at[target];
    const bool standing = shelves_at[target] != 0 && !(other != 0 && robots[other - 1].shelf != 0);
    if (robot.shelf != 0 && standing) continue;  // no way past a shelf with a shelf
    to[a] = packed(x, y);
    anybody |= to[a] != from[a];
  }
  if (anybody) resolve(from.data(), to.data(), robots_, moves.data());

  for (int64_t a = 0; a < robots_; ++a) {
    Robot& robot = robots[a];
    const int64_t here = cell(robot.x, robot.y);
    if (actions[a] == kLeft) robot.direction = kLeftOf[robot.direction];
    if (actions[a] == kRight) robot.direction = kRightOf[robot.direction];
    if (actions[a] == kToggle) {
      if (robot.shelf == 0) {
        robot.shelf = shelves_at[here];
        if (requested[robot.shelf]) pay(lift_pay_, a, rewards);
      } else if (!place.corridor[robot.y * place.width + robot.x]) {
        // What lifting paid is paid back: there is nothing in lifting a shelf again and again.
        if (requested[robot.shelf]) pay(-lift_pay_, a, rewards);
        robot.shelf = 0;
        if (robot.delivered != 0 && reward_ == Reward::kTwoStage) rewards[a] += 0.5f;
        robot.delivered = 0;
      }
    }
    if (to[a] == from[a] || !moves[a]) to[a] = from[a];
  }
  if (!anybody) return;
  // All robots leave their cells before any arrives.
  for (int64_t a = 0; a < robots_; ++a) {
    if (to[a] == from[a]) continue;
    const int64_t here = cell(robots[a].x, robots[a].y);
    robots_at[here] = 0;
    if (robots[a].shelf != 0) shelves_at[here] = 0;
  }
  for (int64_t a = 0; a < robots_; ++a) {
    if (to[a] == from[a]) continue;
    Robot& robot = robots[a];
    robot.x = to[a] & 0xffff;
    robot.y = to[a] >> 16;
    const int64_t here = cell(robot.x, robot.y);
    robots_at[here] = static_cast<int32_t>(a + 1);
    if (robot.shelf == 0) continue;
    shelves[robot.shelf - 1] = {robot.x, robot.y};
    shelves_at[here] = robot.shelf;
  }
}

void Warehouses::deliver(int64_t env, float* rewards) {
  const Layout& place = layout(env);
  const auto count = static_cast<int32_t>(place.shelves.size());
  uint8_t* requested = &requested_[env * (1 + max_shelves_)];
  int32_t* queue = &request_[env * requests_];
  for (size_t g = 0; g < place.goals.size(); ++g) {
    const int32_t goal = place.goals[g];
    const int64_t here = cell(goal % place.width, goal / place.width);
    const int32_t shelf = shelves_at_[env * cells_ + here];
    if (shelf == 0 || !requested[shelf]) continue;
    int32_t left = random_[env].integer(0, count - static_cast<int32_t>(requests_));
    int32_t next = 1;
    while (requested[next] || left-- > 0) ++next;
    *std::find(queue, queue + requests_, shelf) = next;
    requested[shelf] = 0;
    requested[next] = 1;
    const int32_t robot = robots_at_[env * cells_ + here] - 1;
    const bool staged = reward_ == Reward::kTwoStage;  // the other half when it is put back
    if (staged) robot_[env * robots_ + robot].delivered = 1;
    pay(staged ? 0.5f : place.pay[g], robot, rewards);
  }
}

void Warehouses::observe(float* out) const {
  const int64_t side = 2 * reach_ + 1;
  const int64_t width = observation();
  for (int64_t env = 0; env < envs_; ++env) {
    const Layout& place = layout(env);
    const Robot* robots = &robot_[env * robots_];
    const int32_t* robots_at = &robots_at_[env * cells_];
    const int32_t* shelves_at = &shelves_at_[env * cells_];
    const uint8_t* requested = &requested_[env * (1 + max_shelves_)];
    for (int64_t a = 0; a < robots_; ++a, out += width) {
      const Robot& robot = robots[a];
      std::copy(nothing_.begin(), nothing_.end(), out);
      out[0] = static_cast<float>(robot.x);
      out[1] = static_cast<float>(robot.y);
      out[2] = robot.shelf != 0 ? 1.0f : 0.0f;
      out[3 + robot.direction] = 1.0f;
      out[7] = place.corridor[robot.y * place.width + robot.x] ? 1.0f : 0.0f;
      float* seen = out + kSelf;
      for (int64_t row = 0; row < side; ++row) {
        const int64_t first = (robot.y + row) * stride_ + robot.x;
        for (int64_t column = 0; column < side; ++column, seen += kCell) {
          const int32_t other = robots_at[first + column];
          if (other != 0) {
            seen[0] = 1.0f;
            seen[1] = 0.0f;
            seen[1 + robots[other - 1].direction] = 1.0f;
          }
          const int32_t shelf = shelves_at[first + column];
          if (shelf != 0) {
            seen[5] = 1.0f;
            if (requested[shelf]) seen[6] = 1.0f;
          }
        }
      }
    }
  }
}

}  // namespace mg2l::warehouse
