// The Python module mg2l._particle: the physics step, and the geometry that scenarios observe.
//
// Scenarios are written in NumPy, which is slow on short trailing axes (two coordinates, a few
// bodies): the few loops that every scenario needs are here, over all copies in one call.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "physics.h"

namespace py = pybind11;

namespace mg2l::particle {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;   // refuses other dtypes when noconvert
using Points = py::array_t<double, py::array::forcecast>;  // [N, P, 2], any strides
using Flags = py::array_t<bool, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

std::string shape_text(const py::array& array) {
  return py::str(array.attr("shape")).cast<std::string>();
}

void check_points(const py::array& array, const char* name) {
  if (array.ndim() != 3 || array.shape(2) != 2) {
    throw py::value_error(std::string(name) + " must have shape [copies, points, 2], got " +
                          shape_text(array));
  }
}

// Copies [N, P, 2] actions, clipped to [-1, 1], into columns of the [N, B, 2] buffer; false if one
// of them is not a number.
bool clip_into(const Points& actions, int64_t first_body, int64_t bodies,
               std::vector<double>& buffer) {
  const auto values = actions.unchecked<3>();
  bool numbers = true;
  for (py::ssize_t n = 0; n < values.shape(0); ++n) {
    double* row = buffer.data() + 2 * (n * bodies + first_body);
    for (py::ssize_t p = 0; p < values.shape(1); ++p) {
      for (py::ssize_t axis = 0; axis < 2; ++axis) {
        const double value = values(n, p, axis);
        numbers &= value == value;
        row[2 * p + axis] = value < -1 ? -1 : value > 1 ? 1 : value;
      }
    }
  }
  return numbers;
}

void step_worlds(Doubles position, Doubles velocity, const Points& actions, const Points& scripted,
                 const Doubles& acceleration, const Doubles& size, const Doubles& max_speed,
                 const Flags& collides) {
  check_points(position, "position");
  check_points(velocity, "velocity");
  check_points(actions, "actions");
  check_points(scripted, "scripted");
  const int64_t copies = position.shape(0);
  const int64_t bodies = position.shape(1);
  const int64_t agents = actions.shape(1);
  if (velocity.shape(0) != copies || velocity.shape(1) != bodies) {
    throw py::value_error("velocity must have the shape of position " + shape_text(position) +
                          ", got " + shape_text(velocity));
  }
  if (actions.shape(0) != copies || scripted.shape(0) != copies ||
      agents + scripted.shape(1) != bodies) {
    throw py::value_error("actions " + shape_text(actions) + " and scripted " +
                          shape_text(scripted) + " together must have the shape of position " +
                          shape_text(position));
  }
  for (const py::array& property :
       {py::array(acceleration), py::array(size), py::array(max_speed), py::array(collides)}) {
    if (property.ndim() != 1 || property.shape(0) != bodies) {
      throw py::value_error("acceleration, size, max_speed and collides must have shape [" +
                            std::to_string(bodies) + "], got " + shape_text(property));
    }
  }
  const Bodies body{bodies, acceleration.data(), size.data(), max_speed.data(), collides.data()};
  double* pos = position.mutable_data();
  double* vel = velocity.mutable_data();
  bool numbers = true;
  {
    const py::gil_scoped_release release;
    std::vector<double> clipped(2 * copies * bodies);
    numbers =
        clip_into(actions, 0, bodies, clipped) && clip_into(scripted, agents, bodies, clipped);
    if (numbers) step(body, copies, clipped.data(), pos, vel);
  }
  if (!numbers) throw py::value_error("actions must be numbers, got NaN");
}

// What `write_offsets` and `write_distances` share: for every copy, every observer and every point
// but the observer itself, calls write(row of out, index of the point, dx, dy).
template <int kWidth, typename Write>
void observe(Floats& out, int64_t column, const Points& observers, const Points& points,
             bool skip_self, const Write& write) {
  check_points(observers, "observers");
  check_points(points, "points");
  const int64_t copies = observers.shape(0);
  const int64_t seers = observers.shape(1);
  const int64_t width = kWidth * (points.shape(1) - (skip_self ? 1 : 0));
  if (points.shape(0) != copies || (skip_self && points.shape(1) < seers)) {
    throw py::value_error("points " + shape_text(points) + " do not fit observers " +
                          shape_text(observers));
  }
  if (out.ndim() != 3 || out.shape(0) != copies || out.shape(1) != seers || column < 0 ||
      column + width > out.shape(2)) {
    throw py::value_error("out " + shape_text(out) + " has no room for " + std::to_string(width) +
                          " numbers of observers " + shape_text(observers) + " from column " +
                          std::to_string(column));
  }
  float* const data = out.mutable_data();
  const int64_t stride = out.shape(2);
  const auto from = observers.unchecked<3>();
  const auto to = points.unchecked<3>();
  const py::gil_scoped_release release;
  for (int64_t n = 0; n < copies; ++n) {
    for (int64_t a = 0; a < seers; ++a) {
      float* cell = data + (n * seers + a) * stride + column;
      const double x = from(n, a, 0);
      const double y = from(n, a, 1);
      for (int64_t p = 0; p < to.shape(1); ++p) {
        if (skip_self && p == a) continue;
        write(cell, to(n, p, 0) - x, to(n, p, 1) - y);
        cell += kWidth;
      }
    }
  }
}

void write_offsets(Floats out, int64_t column, const Points& observers, const Points& points,
                   bool skip_self, double radius) {
  if (std::isinf(radius)) {
    observe<2>(out, column, observers, points, skip_self, [](float* cell, double dx, double dy) {
      cell[0] = static_cast<float>(dx);
      cell[1] = static_cast<float>(dy);
    });
    return;
  }
  observe<2>(out, column, observers, points, skip_self,
             [radius](float* cell, double dx, double dy) {
               const bool seen = std::sqrt(dx * dx + dy * dy) < radius;
               cell[0] = seen ? static_cast<float>(dx) : 0.0f;
               cell[1] = seen ? static_cast<float>(dy) : 0.0f;
             });
}

void write_distances(Floats out, int64_t column, const Points& observers, const Points& points,
                     bool skip_self, double radius) {
  observe<1>(out, column, observers, points, skip_self,
             [radius](float* cell, double dx, double dy) {
               const double distance = std::sqrt(dx * dx + dy * dy);
               cell[0] = distance < radius ? static_cast<float>(distance) : 0.0f;
             });
}

void write_positions(Floats out, int64_t column, const Points& observers) {
  check_points(observers, "observers");
  if (out.ndim() != 3 || out.shape(0) != observers.shape(0) || out.shape(1) != observers.shape(1) ||
      column < 0 || column + 2 > out.shape(2)) {
    throw py::value_error("out " + shape_text(out) + " has no room for the positions of " +
                          shape_text(observers) + " from column " + std::to_string(column));
  }
  auto cells = out.mutable_unchecked<3>();
  const auto from = observers.unchecked<3>();
  const py::gil_scoped_release release;
  for (py::ssize_t n = 0; n < from.shape(0); ++n) {
    for (py::ssize_t a = 0; a < from.shape(1); ++a) {
      cells(n, a, column) = static_cast<float>(from(n, a, 0));
      cells(n, a, column + 1) = static_cast<float>(from(n, a, 1));
    }
  }
}

// [P, Q, N]: the copy axis last, so that NumPy reduces over the short axes at full speed.
Doubles distances(const Points& from, const Points& to) {
  check_points(from, "observers");
  check_points(to, "points");
  if (from.shape(0) != to.shape(0)) {
    throw py::value_error("points " + shape_text(to) + " do not fit observers " + shape_text(from));
  }
  const py::ssize_t copies = from.shape(0);
  const py::ssize_t rows = from.shape(1);
  const py::ssize_t columns = to.shape(1);
  Doubles result({rows, columns, copies});
  double* out = result.mutable_data();
  const auto a = from.unchecked<3>();
  const auto b = to.unchecked<3>();
  {
    const py::gil_scoped_release release;
    for (py::ssize_t p = 0; p < rows; ++p) {
      for (py::ssize_t q = 0; q < columns; ++q) {
        for (py::ssize_t n = 0; n < copies; ++n) {
          const double dx = b(n, q, 0) - a(n, p, 0);
          const double dy = b(n, q, 1) - a(n, p, 1);
          *out++ = std::sqrt(dx * dx + dy * dy);
        }
      }
    }
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(_particle, module) {
  module.doc() = "Physics step and geometry of the particle world, over all copies at once.";
  module.attr("TIME_STEP") = kTimeStep;
  module.attr("DAMPING") = kDamping;
  module.attr("WALL") = kWall;
  constexpr double kEverything = std::numeric_limits<double>::infinity();
  module.def("step", &step_worlds, py::arg("position").noconvert(), py::arg("velocity").noconvert(),
             py::arg("actions"), py::arg("scripted"), py::arg("acceleration"), py::arg("size"),
             py::arg("max_speed"), py::arg("collides"),
             "Advance position and velocity [N, B, 2] in place by one step under the actions of "
             "the agents [N, A, 2] and of the scripted bodies [N, B - A, 2], clipped to [-1, 1].");
  module.def("write_positions", &write_positions, py::arg("out").noconvert(), py::arg("column"),
             py::arg("observers"), "Write each observer's position into out[:, :, column:].");
  module.def("write_offsets", &write_offsets, py::arg("out").noconvert(), py::arg("column"),
             py::arg("observers"), py::arg("points"), py::arg("skip_self") = false,
             py::arg("radius") = kEverything,
             "Write point - observer into out[:, :, column:], zero from radius on; skip_self "
             "leaves out point a for observer a.");
  module.def("write_distances", &write_distances, py::arg("out").noconvert(), py::arg("column"),
             py::arg("observers"), py::arg("points"), py::arg("skip_self") = false,
             py::arg("radius") = kEverything,
             "Write |point - observer| into out[:, :, column:], zero from radius on.");
  module.def("distances", &distances, py::arg("observers"), py::arg("points"),
             "Distances between observers [N, P, 2] and points [N, Q, 2]: [P, Q, N].");
}

}  // namespace mg2l::particle
