// Walkers on a ring, stepped together: a simulator of one's own, bound by pybind11.
//
//   c++ -O3 -std=c++17 -shared -fPIC $(python -m pybind11 --includes) cpp_environment.cpp
//       -o ring$(python -m pybind11 --extension-suffix)
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

using Integers = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

class Ring {
 public:
  Ring(int64_t envs, int64_t agents, int64_t cells)
      : envs_(envs), agents_(agents), cells_(cells), cell_(envs * agents, 0) {
    if (envs < 1 || agents < 1 || cells < 2) {
      throw py::value_error("envs and agents must be at least 1, cells at least 2");
    }
  }

  // Puts the walkers of a sub-environment on cells [A].
  void place(int64_t env, const Integers& cells) {
    if (env < 0 || env >= envs_) {
      throw py::index_error("env must be in [0, " + std::to_string(envs_) + ")");
    }
    check("cells", cells, agents_, cells_);
    std::copy(cells.data(), cells.data() + agents_, &cell_[env * agents_]);
  }

  // Moves every walker by 0 back, 1 not at all, 2 forward: actions [N, A]. Rewards [N, A]: minus
  // the distance to the goal of its sub-environment, goals [N], as a fraction of the largest.
  py::array_t<float> step(const Integers& actions, const Integers& goals) {
    check("actions", actions, envs_ * agents_, 3);
    check("goals", goals, envs_, cells_);
    py::array_t<float> rewards({envs_, agents_});
    float* paid = rewards.mutable_data();
    const int64_t *chosen = actions.data(), *goal = goals.data();
    const py::gil_scoped_release release;
    for (int64_t i = 0; i < envs_ * agents_; ++i) {
      cell_[i] = (cell_[i] + chosen[i] - 1 + cells_) % cells_;
      const int64_t apart = (cell_[i] - goal[i / agents_] + cells_) % cells_;
      const int64_t distance = apart < cells_ - apart ? apart : cells_ - apart;
      paid[i] = -2.0F * static_cast<float>(distance) / static_cast<float>(cells_);
    }
    return rewards;
  }

  // Cells of all walkers, [N, A].
  Integers cells() const {
    Integers found({envs_, agents_});
    std::copy(cell_.begin(), cell_.end(), found.mutable_data());
    return found;
  }

 private:
  static void check(const char* name, const Integers& values, int64_t size, int64_t high) {
    if (values.size() != size) {
      throw py::value_error(std::string(name) + " must have " + std::to_string(size) +
                            " numbers, got " + std::to_string(values.size()));
    }
    for (py::ssize_t i = 0; i < values.size(); ++i) {
      if (values.data()[i] < 0 || values.data()[i] >= high) {
        throw py::value_error(std::string(name) + " must be in [0, " + std::to_string(high) +
                              "), got " + std::to_string(values.data()[i]));
      }
    }
  }

  int64_t envs_, agents_, cells_;
  std::vector<int64_t> cell_;  // [N, A]
};

}  // namespace

PYBIND11_MODULE(ring, module) {
  module.doc() = "Walkers on a ring.";
  py::class_<Ring>(module, "Ring")
      .def(py::init<int64_t, int64_t, int64_t>(), py::arg("envs"), py::arg("agents"),
           py::arg("cells"))
      .def("place", &Ring::place, py::arg("env"), py::arg("cells"))
      .def("step", &Ring::step, py::arg("actions"), py::arg("goals"))
      .def("cells", &Ring::cells);
}
