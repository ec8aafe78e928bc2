// What both CPU kernels of `stacked_mlp` are made of: weights as products read them, tiles of rows,
// and the product of a tile with a layer. A tile of rows goes through all layers before the next
// one, and what a layer makes of it stays in the cache for the next.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "nonzeros.h"
#include "stacked_mlp.h"
#include "transpose.h"

namespace mg2l {

constexpr int64_t kTile = 96;              // rows worked on together
constexpr int64_t kMinTaskWork = 1 << 20;  // products per task; below it a thread costs more
constexpr int64_t kNarrow = 8;             // units up to which a linear layer is dot products
static_assert(kTile % 12 == 0);

template <int kBytes, typename scalar_t>
constexpr int64_t kPanel = kPair * kBytes / static_cast<int64_t>(sizeof(scalar_t));

template <typename scalar_t>
int64_t panel_width() {
  const int bytes = simd() == Simd::kAvx512 ? 64 : simd() == Simd::kAvx2 ? 32 : 16;
  return kPair * bytes / static_cast<int64_t>(sizeof(scalar_t));
}

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// One layer's weights of all groups as products read them: panels of columns as wide as a
// micro-kernel, [G, panels, rows of the matrix, panel], padded with zeros. Of pairs a row is two
// rows of the matrix.
template <typename element_t>
struct Panels {
  int64_t depth, width, panel;
  std::unique_ptr<element_t[]> data;

  Panels(int64_t groups, int64_t depth_, int64_t width_)
      : depth(depth_),
        width(round_up(width_, panel_width<element_t>())),
        panel(panel_width<element_t>()),
        data(new element_t[groups * depth * width]) {}

  element_t* at(int64_t group, int64_t column) const {
    return data.get() + (group * width + column) * depth;
  }
};

// Every panel of weights [G, units, inputs], for products with inputs, or with gradients.
template <typename scalar_t>
Panels<scalar_t> pack(const scalar_t* weight, int64_t groups, int64_t units, int64_t inputs,
                      bool transposed) {
  Panels<scalar_t> panels(groups, transposed ? inputs : units, transposed ? units : inputs);
  const int64_t panel = panels.panel;
  for (int64_t group = 0; group < groups; ++group) {
    const scalar_t* from = weight + group * units * inputs;
    for (int64_t column = 0; column < panels.width; column += panel) {
      scalar_t* to = panels.at(group, column);
      const int64_t count = std::min(panel, (transposed ? units : inputs) - column);
      if (count < panel) std::fill_n(to, panels.depth * panel, scalar_t(0));
      if (transposed) {
        transpose(from + column * inputs, inputs, count, inputs, to, panel);
        continue;
      }
      for (int64_t h = 0; h < units; ++h) {
        std::copy_n(from + h * inputs + column, count, to + h * panel);
      }
    }
  }
  return panels;
}

// The same of weights that are rounded to bfloat16.
inline Panels<Pair> pack_pairs(const float* weight, int64_t groups, int64_t units, int64_t inputs,
                               bool transposed) {
  const int64_t columns = transposed ? units : inputs;
  Panels<Pair> panels(groups, pairs_of(transposed ? inputs : units), columns);
  const int64_t panel = panels.panel;
  std::vector<Pair> row(round_up(panels.depth, 16));
  const auto pack_panel = [&](const float* from, int64_t count, Pair* to) MG2L_INLINE_LAMBDA {
    if (count < panel) std::fill_n(to, panels.depth * panel, Pair{});
    if (!transposed) return pair_across(from, inputs, units, count, to, panel);
    for (int64_t h = 0; h < count; ++h) {
      pair_along(from + h * inputs, inputs, 1, inputs, row.data(), 0);
      for (int64_t i = 0; i < panels.depth; ++i) to[i * panel + h] = row[i];
    }
  };
  run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
    if constexpr (kHasPairs<bytes, float>) {
      for (int64_t group = 0; group < groups; ++group) {
        for (int64_t column = 0; column < panels.width; column += panel) {
          const float* from = weight + group * units * inputs + column * (transposed ? inputs : 1);
          pack_panel(from, std::min(panel, columns - column), panels.at(group, column));
        }
      }
    }
  });
  return panels;
}

template <typename scalar_t>
struct MlpLayer {
  const scalar_t *weight, *bias;  // [G, units, inputs], [G, units]
  Panels<scalar_t> panels;        // of the transposed weights; in the backward pass as they are
  Panels<Pair> pairs;             // these instead where products are rounded
};

template <typename scalar_t>
struct MlpArrays {
  const MlpSizes& sizes;
  bool relu, bfloat16;
  const scalar_t* x;
  int64_t group_stride, row_stride;  // of x
  std::vector<MlpLayer<scalar_t>> layers;
  bool lists;  // whether inputs of 0 add nothing to the first layer, whatever it multiplies
  scalar_t *y, *kept, *moments;  // the last two null when nothing is kept

  // Whether a layer multiplies what is rounded to bfloat16.
  bool rounded(size_t layer) const { return bfloat16 && layer < sizes.normalised(); }

  const scalar_t* row(int64_t group, int64_t row) const {
    return x + group * group_stride + row * row_stride;
  }
  // Where a normalised layer's features lie; the last one's are the result.
  scalar_t* features(size_t layer, int64_t group, int64_t row) const {
    const int64_t at = (group * sizes.rows + row) * sizes.units[layer];
    if (layer + 1 == sizes.layers()) return y + at;
    return kept ? kept + sizes.kept_before(layer) + at : nullptr;
  }
  scalar_t* moments_of(size_t layer, int64_t group, int64_t row) const {
    return moments ? moments + sizes.moments_before(layer) + (group * sizes.rows + row) * 2
                   : nullptr;
  }
};

// Rows that are written, `stride` numbers apart.
template <typename scalar_t>
struct Span {
  scalar_t* data;
  int64_t stride;
};

// A tile of at most kTile rows, padded to `stride` columns.
template <typename element_t>
struct TileRows {
  int64_t stride = 0;
  std::vector<element_t> memory;
  element_t* data = nullptr;

  TileRows(int64_t width, int64_t rows) {
    stride = padded_width<element_t>(width);
    memory.assign(round_up(std::min(rows, kTile), kRows<64>) * stride + 64 / sizeof(element_t),
                  element_t{});
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    data = memory.data() + (64 - address % 64) % 64 / sizeof(element_t);
  }

  Span<element_t> span() const { return {data, stride}; }
};

template <typename scalar_t>
void copy_rows(const scalar_t* from, int64_t from_stride, int64_t count, int64_t width,
               TileRows<scalar_t>& to) {
  for (int64_t t = 0; t < count; ++t) {
    std::copy_n(from + t * from_stride, width, to.data + t * to.stride);
  }
}

template <int kLanes>
MG2L_INLINE Vec<float, kLanes> tanh_lanes(const Vec<float, kLanes>& x) {
  using V = Vec<float, kLanes>;
  const V square = x * x;
  const V near =
      x + x * square *
              (square * (square * (square * 0.021869488F - 0.053968254F) + 0.133333333F) -
               0.333333333F);
  const V far = 1.0F - 2.0F / (exp_lanes<kLanes>(x + x) + 1.0F);
  const V value = square < 0.0625F ? near : far;
  return x != x ? x : value;
}

template <int kLanes>
MG2L_INLINE Vec<double, kLanes> tanh_lanes(const Vec<double, kLanes>& x) {
  Vec<double, kLanes> y;
  for (int lane = 0; lane < kLanes; ++lane) y[lane] = std::tanh(x[lane]);
  return y;
}

// The activation, unless the layer is linear alone.
template <bool kActivate, typename scalar_t, int kLanes>
MG2L_INLINE Vec<scalar_t, kLanes> activate(const Vec<scalar_t, kLanes>& z, bool relu) {
  if constexpr (!kActivate) return z;
  if (!relu) return tanh_lanes<kLanes>(z);
  return z < scalar_t(0) ? Vec<scalar_t, kLanes>{} : z;
}

// to = rows . matrix + bias, activated unless the layer is linear alone.
template <int kBytes, bool kActivate, typename element_t, typename scalar_t>
MG2L_INLINE void linear(const Rows<element_t>& rows, const Panels<element_t>& panels, int64_t group,
                        const scalar_t* bias, int64_t units, int64_t count, bool relu,
                        const Span<scalar_t>& to) {
  constexpr int kLanes = kBytes / sizeof(scalar_t), kMicro = kRows<kBytes>;
  constexpr int64_t panel = kPanel<kBytes, scalar_t>;
  using V = Vec<scalar_t, kLanes>;
  for (int64_t column = 0; column < units; column += panel) {
    alignas(64) scalar_t offsets[panel] = {};
    if (bias) std::copy_n(bias + column, std::min(panel, units - column), offsets);
    const V start[kPair] = {load<V>(offsets), load<V>(offsets + kLanes)};
    for (int64_t first = 0; first < count; first += kMicro) {
      V sum[kMicro][kPair];
      multiply<kBytes>(rows, panels.at(group, column), panel, first, 0, start, sum);
#pragma GCC unroll 12
      for (int row = 0; row < kMicro; ++row) {
#pragma GCC unroll 2
        for (int i = 0; i < kPair; ++i) {
          const V z = activate<kActivate, scalar_t, kLanes>(sum[row][i], relu);
          store(to.data + (first + row) * to.stride + column + i * kLanes, z);
        }
      }
    }
  }
}

// `linear` for kVectors vectors of columns, where columns of the rows that are not 0 are listed.
template <int kBytes, bool kActivate, int kVectors, typename scalar_t>
MG2L_INLINE void linear_listed_block(const Rows<scalar_t>& rows, const NonZeros<scalar_t>& nonzeros,
                                     const scalar_t* matrix, int64_t step, const scalar_t* bias,
                                     int64_t units, int64_t count, bool relu,
                                     const Span<scalar_t>& to) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  constexpr int64_t panel = kPanel<kBytes, scalar_t>;
  using V = Vec<scalar_t, kLanes>;
  alignas(64) scalar_t offsets[kVectors * kLanes] = {};
  std::copy_n(bias, std::min<int64_t>(kVectors * kLanes, units), offsets);
  for (int64_t t = 0; t < count; ++t) {
    V sum[kVectors];
    multiply_listed_block<kBytes>(rows.data + t * rows.stride, nonzeros.row(t), nonzeros.counts[t],
                                  matrix, panel, step, offsets, sum);
    for (int v = 0; v < kVectors; ++v) {
      store(to.data + t * to.stride + v * kLanes,
            activate<kActivate, scalar_t, kLanes>(sum[v], relu));
    }
  }
}

template <int kBytes, bool kActivate, typename scalar_t>
MG2L_INLINE void linear_listed(const Rows<scalar_t>& rows, const NonZeros<scalar_t>& nonzeros,
                               const Panels<scalar_t>& panels, int64_t group, const scalar_t* bias,
                               int64_t units, int64_t count, bool relu, const Span<scalar_t>& to) {
  constexpr int64_t panel = kPanel<kBytes, scalar_t>;
  const int64_t step = panel * panels.depth;
  int64_t column = 0;
  for (; column + panel < units; column += 2 * panel) {
    linear_listed_block<kBytes, kActivate, 2 * kPair>(
        rows, nonzeros, panels.at(group, column), step, bias + column, units - column, count, relu,
        Span<scalar_t>{to.data + column, to.stride});
  }
  if (column < units) {
    linear_listed_block<kBytes, kActivate, kPair>(rows, nonzeros, panels.at(group, column), step,
                                                  bias + column, units - column, count, relu,
                                                  Span<scalar_t>{to.data + column, to.stride});
  }
}

// Whether a layer is too narrow for a panel.
inline bool is_narrow(const MlpSizes& sizes, size_t layer) {
  return layer >= sizes.normalised() && sizes.units[layer] <= kNarrow;
}

// Tiles or parts of `work` products each that are at least a task.
inline int64_t tiles_per_task(int64_t work) {
  return round_up(kMinTaskWork, std::max<int64_t>(work, 1)) / std::max<int64_t>(work, 1);
}

template <typename scalar_t>
int64_t products_of_row(const MlpSizes& sizes) {
  int64_t total = 0;
  for (size_t l = 0; l < sizes.layers(); ++l) total += sizes.inputs_of(l) * sizes.units[l];
  return std::max<int64_t>(total, 1);
}

// `x` itself where the numbers of a row follow each other.
inline Tensor with_whole_rows(const Tensor& x) {
  return x.size(2) <= 1 || x.strides()[2] == 1 ? x : torch::stable::contiguous(x);
}

// Parameters, contiguous.
struct MlpTensors {
  Tensor x;
  std::vector<Tensor> weights, biases;

  MlpTensors(const Tensor& x_, const std::vector<Tensor>& weights_,
             const std::vector<Tensor>& biases_)
      : x(with_whole_rows(x_)) {
    for (const Tensor& weight : weights_) weights.push_back(as_contiguous(weight));
    for (const Tensor& bias : biases_) biases.push_back(as_contiguous(bias));
  }
};

// Whether no number is NaN or infinite.
template <typename scalar_t>
bool all_finite(const scalar_t* numbers, int64_t count) {
  scalar_t zero = 0;  // x - x is 0, or NaN
  run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
    constexpr int kLanes = bytes / sizeof(scalar_t);
    using V = Vec<scalar_t, kLanes>;
    V sum{};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const V x = load<V>(numbers + i);
      sum += x - x;
    }
    zero = sum_lanes<scalar_t, kLanes>(sum);
    for (; i < count; ++i) zero += numbers[i] - numbers[i];
  });
  return zero == 0;
}

template <typename scalar_t>
MlpArrays<scalar_t> arrays_of(const MlpSizes& sizes, const MlpTensors& tensors, bool relu,
                              bool bfloat16, bool backward, bool want_x) {
  MlpArrays<scalar_t> a{sizes,
                        relu,
                        bfloat16,
                        data<scalar_t>(tensors.x),
                        tensors.x.strides()[0],
                        tensors.x.strides()[1],
                        {},
                        false,
                        nullptr,
                        nullptr,
                        nullptr};
  for (size_t l = 0; l < sizes.layers(); ++l) {
    const auto* weight = data<scalar_t>(tensors.weights[l]);
    const bool needed = backward ? l > 0 || want_x : !is_narrow(sizes, l);
    const int64_t plain = needed && !a.rounded(l) ? sizes.groups : 0;
    const int64_t rounded = needed && a.rounded(l) ? sizes.groups : 0;
    const int64_t units = sizes.units[l], inputs = sizes.inputs_of(l);
    Panels<Pair> pairs(0, 0, 0);
    if constexpr (std::is_same_v<scalar_t, float>) {
      pairs = pack_pairs(weight, rounded, units, inputs, !backward);
    }
    a.layers.push_back({weight, data<scalar_t>(tensors.biases[l]),
                        pack(weight, plain, units, inputs, !backward), std::move(pairs)});
  }
  a.lists = !a.rounded(0) && sizes.inputs >= NonZeros<scalar_t>::kLeast &&
            all_finite(a.layers[0].weight, sizes.groups * sizes.units[0] * sizes.inputs);
  return a;
}

}  // namespace mg2l
