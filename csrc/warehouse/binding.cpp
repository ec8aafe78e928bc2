// The Python module mg2l._warehouse: `Warehouses` on NumPy arrays.

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "warehouse.h"

namespace py = pybind11;

namespace mg2l::warehouse {
namespace {

using Integers = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style>;

std::string shape_text(const std::vector<int64_t>& shape) {
  return py::str(py::tuple(py::cast(shape))).cast<std::string>();
}

void check(const Integers& array, const char* name, const std::vector<int64_t>& shape, int64_t low,
           int64_t high) {
  if (std::vector<int64_t>(array.shape(), array.shape() + array.ndim()) != shape) {
    throw py::value_error(std::string(name) + " must have shape " + shape_text(shape) + ", got " +
                          py::str(array.attr("shape")).cast<std::string>());
  }
  for (py::ssize_t i = 0; i < array.size(); ++i) {
    if (array.data()[i] < low || array.data()[i] >= high) {
      throw py::value_error(std::string(name) + " must be in [" + std::to_string(low) + ", " +
                            std::to_string(high) + "), got " + std::to_string(array.data()[i]));
    }
  }
}

void check_copy(const Warehouses& all, int64_t copy, int64_t layout) {
  const auto layouts = static_cast<int64_t>(all.layouts().size());
  if (copy < 0 || copy >= all.copies()) throw py::index_error("copy is out of range");
  if (layout < 0 || layout >= layouts) throw py::index_error("layout is out of range");
}

Layout layout_of(const py::array_t<uint8_t, py::array::c_style | py::array::forcecast>& cells) {
  if (cells.ndim() != 2) throw py::value_error("a layout must have two axes");
  Layout layout{
      static_cast<int32_t>(cells.shape(0)), static_cast<int32_t>(cells.shape(1)), {}, {}, {}};
  for (int32_t i = 0; i < cells.size(); ++i) {
    const uint8_t kind = cells.data()[i];
    layout.corridor.push_back(kind != 'x');
    if (kind == 'x') layout.shelves.push_back(i);
    if (kind == 'g') layout.goals.push_back(i);
  }
  return layout;
}

Warehouses make(
    const std::vector<py::array_t<uint8_t, py::array::c_style | py::array::forcecast>>& layouts,
    int64_t copies, int64_t robots, int64_t reach, int64_t requests, const std::string& reward) {
  if (layouts.empty() || copies < 1 || robots < 1 || reach < 0 || requests < 1) {
    throw py::value_error("layouts, copies, robots and requests must not be empty");
  }
  std::vector<Layout> found;
  for (const auto& cells : layouts) {
    found.push_back(layout_of(cells));
    if (static_cast<int64_t>(found.back().shelves.size()) <= requests || cells.size() < robots) {
      throw py::value_error("a layout has too few shelves or cells");
    }
  }
  const Reward kind = reward == "global"       ? Reward::kGlobal
                      : reward == "individual" ? Reward::kIndividual
                      : reward == "two_stage"
                          ? Reward::kTwoStage
                          : throw py::value_error("unknown reward '" + reward + "'");
  return Warehouses(std::move(found), copies, robots, reach, requests, kind);
}

void begin(Warehouses& all, int64_t copy, int64_t layout, const Integers& cells,
           const Integers& directions, const Integers& requests) {
  check_copy(all, copy, layout);
  const Layout& place = all.layouts()[layout];
  check(cells, "cells", {all.robots()}, 0, int64_t{place.height} * place.width);
  check(directions, "directions", {all.robots()}, 0, kDirections);
  check(requests, "requests", {all.requests()}, 1, static_cast<int64_t>(place.shelves.size()) + 1);
  all.begin(copy, layout, cells.data(), directions.data(), requests.data());
}

void restore(Warehouses& all, int64_t copy, int64_t layout, const Integers& robots,
             const Integers& shelves, const Integers& requests) {
  check_copy(all, copy, layout);
  const Layout& place = all.layouts()[layout];
  const auto count = static_cast<int64_t>(place.shelves.size());
  const int64_t far = std::max(place.height, place.width);
  check(robots, "robots", {all.robots(), 5}, 0, std::max<int64_t>({far, kDirections, count + 1}));
  check(shelves, "shelves", {all.max_shelves(), 2}, 0, far);
  check(requests, "requests", {all.requests()}, 1, count + 1);
  const auto outside = [&](int64_t x, int64_t y) { return x >= place.width || y >= place.height; };
  for (int64_t a = 0; a < all.robots(); ++a) {
    const int64_t* robot = robots.data() + 5 * a;
    if (outside(robot[0], robot[1]) || robot[2] >= kDirections || robot[3] > count) {
      throw py::value_error("robots do not fit the layout of the copy");
    }
  }
  for (int64_t s = 0; s < count; ++s) {
    if (outside(shelves.data()[2 * s], shelves.data()[2 * s + 1])) {
      throw py::value_error("shelves do not fit the layout of the copy");
    }
  }
  all.restore(copy, layout, robots.data(), shelves.data(), requests.data());
}

Floats step(Warehouses& all, const Integers& actions, const py::function& draw) {
  check(actions, "actions", {all.copies(), all.robots()}, 0, kActions);
  Floats rewards({all.copies(), all.robots()});
  float* const paid = rewards.mutable_data();
  const auto drawn = [&](int64_t copy, int64_t count) {
    const py::gil_scoped_acquire hold;
    const auto picked = draw(copy, count).cast<int64_t>();
    if (picked < 0 || picked >= count) throw py::value_error("draw is out of range");
    return picked;
  };
  {
    const py::gil_scoped_release release;
    all.step(actions.data(), paid, drawn);
  }
  return rewards;
}

Floats observe(const Warehouses& all) {
  Floats out({all.copies(), all.robots(), all.observation()});
  float* const data = out.mutable_data();
  const py::gil_scoped_release release;
  all.observe(data);
  return out;
}

py::tuple state(const Warehouses& all) {
  py::array_t<int64_t> robots({all.copies(), all.robots(), int64_t{5}});
  py::array_t<int64_t> shelves({all.copies(), all.max_shelves(), int64_t{2}});
  py::array_t<int64_t> requests({all.copies(), all.requests()});
  int64_t* robot = robots.mutable_data();
  int64_t* shelf = shelves.mutable_data();
  int64_t* request = requests.mutable_data();
  for (int64_t copy = 0; copy < all.copies(); ++copy) {
    for (int64_t a = 0; a < all.robots(); ++a) {
      const Robot& r = all.robots_of(copy)[a];
      for (const int32_t value : {r.x, r.y, r.direction, r.shelf, r.delivered}) *robot++ = value;
    }
    for (int64_t s = 0; s < all.max_shelves(); ++s) {
      const Shelf& held = all.shelves_of(copy)[s];
      *shelf++ = held.x;
      *shelf++ = held.y;
    }
    request = std::copy_n(all.requests_of(copy), all.requests(), request);
  }
  return py::make_tuple(robots, shelves, requests);
}

}  // namespace

PYBIND11_MODULE(_warehouse, module) {
  module.doc() = "Warehouses of robots, all copies stepped at once.";
  py::class_<Warehouses>(module, "Warehouses")
      .def(py::init(&make), py::arg("layouts"), py::arg("copies"), py::arg("robots"),
           py::arg("reach"), py::arg("requests"), py::arg("reward"),
           "layouts: [height, width] uint8 each, of the characters x (shelf), g (goal) and . "
           "(free). reward: individual, global or two_stage.")
      .def("begin", &begin, py::arg("copy"), py::arg("layout"), py::arg("cells"),
           py::arg("directions"), py::arg("requests"),
           "Put a copy into a layout: robots on cells [A] (row * width + column) facing directions "
           "[A] (0 up, 1 down, 2 left, 3 right), shelves [Q] requested, counted from 1.")
      .def("restore", &restore, py::arg("copy"), py::arg("layout"), py::arg("robots"),
           py::arg("shelves"), py::arg("requests"),
           "Put a copy into a layout and the state that `state` gave: its rows of this copy.")
      .def("step", &step, py::arg("actions"), py::arg("draw"),
           "Advance all copies by actions [N, A] and return rewards [N, A]. draw(copy, count) is "
           "called for every delivery and says which of the shelves left is requested next.")
      .def("observe", &observe, "What every robot sees, [N, A, O].")
      .def("state", &state,
           "robots [N, A, 5] (column, row, direction, shelf carried or 0, has delivered), shelves "
           "[N, S, 2] (column, row) and requests [N, Q].");
}

}  // namespace mg2l::warehouse
