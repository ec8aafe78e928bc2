// Who moves where robots meet.
//
// The package builds a graph with networkx and takes `dag_longest_path` of what leads to a free
// cell. Where two queues are equally long, that takes the first in the order in which a subgraph
// lists its nodes: the graph's own, or, where the subgraph is less than half of the graph, that of
// a Python set of (x, y) tuples. To be equal step by step we follow that order, and only there.

#include <array>
#include <cstddef>

#include "warehouse.h"

namespace mg2l::warehouse {
namespace {

// The hash of a tuple of two small integers (CPython 3.8 and newer, Objects/tupleobject.c).
uint64_t hash_of(int32_t cell) {
  constexpr uint64_t kPrime1 = 11400714785074694791u;
  constexpr uint64_t kPrime2 = 14029467366897019727u;
  constexpr uint64_t kPrime5 = 2870177450012600261u;
  uint64_t sum = kPrime5;
  for (const uint64_t item : {uint64_t(cell & 0xffff), uint64_t(cell >> 16)}) {
    sum += item * kPrime2;
    sum = (sum << 31) | (sum >> 33);
    sum *= kPrime1;
  }
  sum += 2 ^ (kPrime5 ^ 3527539u);
  return sum == ~uint64_t{0} ? 1546275796u : sum;
}

// The order in which a Python set lists cells (CPython 3.7 and newer, Objects/setobject.c).
class PythonSet {
 public:
  void add(int32_t cell) {
    if (!place(table_, cell)) return;
    ++used_;
    const size_t mask = table_.size() - 1;
    if (used_ * 5 < mask * 3) return;
    size_t size = 8;
    while (size <= used_ * 4) size *= 2;
    std::vector<int32_t> larger(size, kFree);
    for (const int32_t held : table_) {
      if (held != kFree) place(larger, held);
    }
    table_.swap(larger);
  }

  template <typename Visit>
  void each(const Visit& visit) const {
    for (const int32_t held : table_) {
      if (held != kFree) visit(held);
    }
  }

 private:
  static constexpr int32_t kFree = -1;
  static constexpr size_t kProbes = 9;  // neighbours looked at before the next jump

  static bool place(std::vector<int32_t>& table, int32_t cell) {
    const uint64_t hash = hash_of(cell);
    const size_t mask = table.size() - 1;
    uint64_t perturb = hash;
    size_t i = hash & mask;
    while (true) {
      const size_t last = i + kProbes <= mask ? i + kProbes : i;
      for (size_t j = i; j <= last; ++j) {
        if (table[j] == cell) return false;
        if (table[j] == kFree) {
          table[j] = cell;
          return true;
        }
      }
      perturb >>= 5;
      i = (i * 5 + 1 + perturb) & mask;
    }
  }

  std::vector<int32_t> table_ = std::vector<int32_t>(8, kFree);
  size_t used_ = 0;
};

// The robots' wishes as a graph: nodes in the order in which the package adds them.
class Wishes {
 public:
  Wishes(const int32_t* from, const int32_t* to, int64_t count) : to_(to), count_(count) {
    for (int64_t a = 0; a < count; ++a) {
      add(from[a], a);
      add(to[a], kNobody);
    }
    next_.resize(count);
    for (int64_t a = 0; a < count; ++a) next_[a] = robot_at(to[a]);
  }

  static constexpr int64_t kNobody = -1;

  // The robot on the cell that a robot wants, or kNobody.
  int64_t next(int64_t robot) const { return next_[robot]; }

  // Rank of each robot in the order in which the subgraph of what leads to `sink` lists nodes.
  std::vector<int64_t> order(int32_t sink) const {
    // Nodes of the component, in the order of a breadth-first search from its first node.
    std::vector<bool> seen(cells_.size(), false);
    std::vector<size_t> found;
    const auto reach = [&](size_t node) {
      if (!seen[node]) {
        seen[node] = true;
        found.push_back(node);
      }
    };
    reach(first_of(sink));
    for (size_t i = 0; i < found.size(); ++i) {
      const size_t node = found[i];
      if (robots_[node] != kNobody) reach(index_of(to_[robots_[node]]));
      for (int64_t a = 0; a < count_; ++a) {
        if (to_[a] == cells_[node]) reach(node_of(a));
      }
    }
    std::vector<int64_t> rank(count_, 0);
    int64_t position = 0;
    const auto list = [&](size_t node) {
      if (robots_[node] != kNobody) rank[robots_[node]] = position;
      ++position;
    };
    if (2 * found.size() < cells_.size()) {
      PythonSet component, induced;  // the search's own, and a copy of it in the subgraph
      for (const size_t node : found) component.add(cells_[node]);
      component.each([&](int32_t cell) { induced.add(cell); });
      induced.each([&](int32_t cell) { list(index_of(cell)); });
    } else {
      for (size_t node = 0; node < cells_.size(); ++node) {
        if (seen[node]) list(node);
      }
    }
    return rank;
  }

 private:
  void add(int32_t cell, int64_t robot) {
    const size_t node = index_of(cell);
    if (node == cells_.size()) {
      cells_.push_back(cell);
      robots_.push_back(robot);
    } else if (robot != kNobody) {
      robots_[node] = robot;
    }
  }
  size_t index_of(int32_t cell) const {
    size_t node = 0;
    while (node < cells_.size() && cells_[node] != cell) ++node;
    return node;
  }
  size_t node_of(int64_t robot) const {
    size_t node = 0;
    while (robots_[node] != robot) ++node;
    return node;
  }
  int64_t robot_at(int32_t cell) const {
    const size_t node = index_of(cell);
    return node < cells_.size() ? robots_[node] : kNobody;
  }
  // The first node, in the graph's order, of what leads to a cell.
  size_t first_of(int32_t sink) const {
    for (size_t node = 0; node < cells_.size(); ++node) {
      int32_t cell = cells_[node];
      int64_t robot = robots_[node];
      for (int64_t steps = 0; robot != kNobody && steps < count_; ++steps) {
        cell = to_[robot];
        robot = next_[robot];
      }
      if (cell == sink && robot == kNobody) return node;
    }
    return index_of(sink);
  }

  const int32_t* to_;
  int64_t count_;
  std::vector<int32_t> cells_;   // of each node
  std::vector<int64_t> robots_;  // on it, or kNobody
  std::vector<int64_t> next_;
};

}  // namespace

void resolve(const int32_t* from, const int32_t* to, int64_t count, uint8_t* moves) {
  const Wishes wishes(from, to, count);
  constexpr int64_t kNobody = Wishes::kNobody;
  constexpr int32_t kNowhere = -1;
  std::vector<int32_t> sinks(count, kNowhere);  // the free cell that a robot's queue leads to
  for (int64_t a = 0; a < count; ++a) {
    moves[a] = from[a] == to[a];
    if (moves[a]) continue;
    int64_t robot = a;
    int64_t length = 1;
    while (length <= count) {
      const int64_t next = wishes.next(robot);
      if (next == kNobody) {
        sinks[a] = to[robot];
        break;
      }
      if (next == a) {
        moves[a] = length != 2;  // two robots cannot pass through each other
        break;
      }
      if (from[next] == to[next]) break;
      robot = next;
      ++length;
    }
  }
  // Robots in a queue, counted from its end.
  std::vector<int64_t> depth(count, 0);
  for (int64_t a = 0; a < count; ++a) {
    if (sinks[a] == kNowhere) continue;
    int64_t length = 0;
    for (int64_t b = wishes.next(a); b != kNobody; b = wishes.next(b)) {
      ++length;
      if (depth[b] < length) depth[b] = length;
    }
  }
  for (int64_t a = 0; a < count; ++a) {
    const int32_t sink = sinks[a];
    if (sink == kNowhere) continue;
    std::vector<int64_t> rank;
    int32_t head = sink;
    while (true) {  // backwards along the longest queue
      int64_t best = kNobody;
      for (int64_t b = 0; b < count; ++b) {
        if (sinks[b] != sink || to[b] != head) continue;
        if (best != kNobody && depth[b] == depth[best] && rank.empty()) rank = wishes.order(sink);
        if (best == kNobody || depth[b] > depth[best] ||
            (depth[b] == depth[best] && rank[b] < rank[best])) {
          best = b;
        }
      }
      if (best == kNobody) break;
      moves[best] = 1;
      head = from[best];
    }
    for (int64_t b = a; b < count; ++b) {
      if (sinks[b] == sink) sinks[b] = kNowhere;
    }
  }
}

}  // namespace mg2l::warehouse
