// CPU kernel of `stacked_mlp_backward`.
#include <memory>
#include <tuple>

#include "stacked_mlp_tiles.h"

namespace mg2l {
namespace {

constexpr int64_t kPart = 384;  // rows or more whose gradients of weights are summed together

template <typename scalar_t>
struct MlpGradients {
  const scalar_t* grad;  // [G, rows, units]
  scalar_t* x;           // [G, rows, inputs] or null
  std::vector<scalar_t*> weights, biases;
};

// The sums of a layer's weights, [units, padded inputs], or transposed where that has no more
// padding: [inputs, padded units].
template <typename scalar_t>
struct WeightSums {
  int64_t rows, columns;
  bool transposed;

  WeightSums(int64_t units, int64_t inputs) {
    const int64_t least = std::max<int64_t>(inputs, kRows<64>);
    transposed = least * padded_width<scalar_t>(units) <= units * padded_width<scalar_t>(inputs);
    rows = transposed ? least : units;
    columns = padded_width<scalar_t>(transposed ? units : inputs);
  }
  int64_t size() const { return rows * columns; }
};

// Where the sums of a part of the rows lie: those of each layer's weights, then [padded units] of
// its biases.
template <typename scalar_t>
struct MlpPart {
  std::vector<scalar_t*> weights, biases;

  MlpPart(scalar_t* memory, const MlpSizes& sizes) {
    for (size_t l = 0; l < sizes.layers(); ++l) {
      weights.push_back(memory);
      memory += WeightSums<scalar_t>(sizes.units[l], sizes.inputs_of(l)).size();
      biases.push_back(memory);
      memory += padded_width<scalar_t>(sizes.units[l]);
    }
  }

  static int64_t size(const MlpSizes& sizes) {
    int64_t total = 0;
    for (size_t l = 0; l < sizes.layers(); ++l) {
      total += WeightSums<scalar_t>(sizes.units[l], sizes.inputs_of(l)).size() +
               padded_width<scalar_t>(sizes.units[l]);
    }
    return total;
  }
};

// Gradients of normalised features become those of the product before the activation, in place.
// `features` are n = (h - mean) / std of activations h.
template <int kBytes, bool kRelu, typename scalar_t>
MG2L_INLINE void activation_backward(const scalar_t* features, const scalar_t* moments,
                                     int64_t units, int64_t count, TileRows<scalar_t>& grad,
                                     TileRows<scalar_t>& padded) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  for (int64_t t = 0; t < count; ++t) {
    scalar_t* to = grad.data + t * grad.stride;
    const scalar_t* n = features + t * units;
    if (units % kLanes != 0) {  // whole vectors of it, the rest of which is zero
      std::copy_n(n, units, padded.data);
      n = padded.data;
    }
    V sum{}, dot{};
    for (int64_t i = 0; i < units; i += kLanes) {  // the padding of `grad` is zero
      const V g = load<V>(to + i);
      sum += g;
      dot += g * load<V>(n + i);
    }
    const scalar_t mean = moments[2 * t], inverse = moments[2 * t + 1];
    const V offset = splat<V>(sum_lanes<scalar_t, kLanes>(sum) / static_cast<scalar_t>(units));
    const V slope = splat<V>(sum_lanes<scalar_t, kLanes>(dot) / static_cast<scalar_t>(units));
    const V scale = splat<V>(inverse);
    const V zero = splat<V>((scalar_t(0) - mean) * inverse);  // what an activation of 0 became
    const V std = splat<V>(scalar_t(1) / inverse), centre = splat<V>(mean);
    for (int64_t i = 0; i < units; i += kLanes) {
      const V normal = load<V>(n + i);
      V g = (load<V>(to + i) - offset - normal * slope) * scale;
      if constexpr (kRelu) {
        g = normal <= zero ? V{} : g;
      } else {
        const V h = normal * std + centre;
        g = g * (scalar_t(1) - h * h);
      }
      store(to + i, g);
    }
    std::fill(to + units, to + grad.stride, scalar_t(0));
  }
}

// What a rounded layer multiplies.
struct PairTiles {
  TileRows<Pair> inputs, grads;  // rows paired with the next ones
  TileRows<Pair> units;          // gradients paired along their rows
};

// Inputs that are mostly zeros, some columns of a tile at a time.
template <typename scalar_t>
struct SparseInputs {
  static constexpr int64_t kColumns = 32;
  bool wanted = false;            // whether the tile at hand is
  std::vector<scalar_t> columns;  // [kColumns, kTile]
  std::vector<int32_t> listed;    // of a row's inputs, or of a column's rows, which are not 0

  explicit SparseInputs(int64_t inputs)
      : columns(inputs > 0 ? kColumns * kTile : 0),
        listed(inputs > 0 ? std::max(inputs, kTile) + 16 : 0) {}

  template <int kBytes>
  MG2L_INLINE void look_at(const scalar_t* row, int64_t inputs) {
    wanted = !listed.empty() &&
             NonZeros<scalar_t>::pays(list_nonzeros<kBytes>(row, inputs, listed.data()), inputs);
  }
};

template <typename scalar_t>
struct MlpBackwardScratch {
  std::vector<TileRows<scalar_t>> grads;  // of inputs, then of every layer
  std::vector<TileRows<scalar_t>> inputs;
  std::vector<PairTiles> pairs;
  TileRows<scalar_t> row;
  SparseInputs<scalar_t> sparse;

  explicit MlpBackwardScratch(const MlpArrays<scalar_t>& a)
      : row(*std::max_element(a.sizes.units.begin(), a.sizes.units.end()), 1),
        sparse(a.lists ? a.sizes.inputs : 0) {
    const MlpSizes& sizes = a.sizes;
    grads.emplace_back(sizes.inputs, sizes.rows);
    for (size_t l = 0; l < sizes.layers(); ++l) {
      const int64_t units = sizes.units[l], width = sizes.inputs_of(l);
      grads.emplace_back(units, sizes.rows);
      inputs.emplace_back(width, sizes.rows);
      if (a.rounded(l)) {
        const int64_t rows = pairs_of(std::min(sizes.rows, kTile));
        pairs.push_back({{width, rows}, {units, rows}, {pairs_of(units), sizes.rows}});
      }
    }
  }
};

// What gradients of a layer's products (of a tile, in `grads`) add to those of its weights.
template <int kBytes, typename scalar_t>
MG2L_INLINE void add_weight_gradients(const MlpArrays<scalar_t>& a,
                                      MlpBackwardScratch<scalar_t>& scratch, size_t l,
                                      int64_t group, int64_t first, int64_t count, scalar_t* sums) {
  const int64_t units = a.sizes.units[l], inputs = a.sizes.inputs_of(l);
  const TileRows<scalar_t>& grad = scratch.grads[l + 1];
  if (l == 0 && scratch.sparse.wanted) {
    for (int64_t i = 0; i < inputs; i += SparseInputs<scalar_t>::kColumns) {
      const int64_t width = std::min(SparseInputs<scalar_t>::kColumns, inputs - i);
      scalar_t* columns = scratch.sparse.columns.data();
      transpose(a.row(group, first) + i, a.row_stride, count, width, columns, kTile);
      add_sparse_product<kBytes>(columns, kTile, width, count, grad.data, grad.stride,
                                 sums + i * grad.stride, scratch.sparse.listed.data());
    }
    return;
  }
  TileRows<scalar_t>& padded = scratch.inputs[l];
  const scalar_t* before = l == 0 ? nullptr : a.features(l - 1, group, first);
  if (l == 0 || inputs != padded.stride) {
    copy_rows(l == 0 ? a.row(group, first) : before, l == 0 ? a.row_stride : inputs, count, inputs,
              padded);
    before = padded.data;
  }
  if (WeightSums<scalar_t>(units, inputs).transposed) {  // the inputs' padding is zero
    const int64_t width = std::max<int64_t>(inputs, kRows<kBytes>);
    add_product_t<kBytes>(Rows<scalar_t>{before, padded.stride, width}, grad.data, grad.stride,
                          count, sums);
  } else {
    add_product_t<kBytes>(Rows<scalar_t>{grad.data, grad.stride, units}, before, padded.stride,
                          count, sums);
  }
}

// The same, and, if wanted, the gradients of the layer before.
template <int kBytes, typename scalar_t>
MG2L_INLINE void products_backward(const MlpArrays<scalar_t>& a,
                                   MlpBackwardScratch<scalar_t>& scratch, size_t l, int64_t group,
                                   int64_t first, int64_t count, bool want,
                                   MlpPart<scalar_t>& sums) {
  const int64_t units = a.sizes.units[l], inputs = a.sizes.inputs_of(l);
  const TileRows<scalar_t>& grad = scratch.grads[l + 1];
  add_weight_gradients<kBytes>(a, scratch, l, group, first, count, sums.weights[l]);
  if (!want) return;
  linear<kBytes, false>(Rows<scalar_t>{grad.data, grad.stride, units}, a.layers[l].panels, group,
                        static_cast<const scalar_t*>(nullptr), inputs, count, false,
                        scratch.grads[l].span());
}

// The same of a layer that multiplies what is rounded to bfloat16.
template <int kBytes>
MG2L_INLINE void rounded_backward(const MlpArrays<float>& a, MlpBackwardScratch<float>& scratch,
                                  size_t l, int64_t group, int64_t first, int64_t count, bool want,
                                  MlpPart<float>& sums) {
  const int64_t units = a.sizes.units[l], inputs = a.sizes.inputs_of(l);
  const TileRows<float>& grad = scratch.grads[l + 1];
  const PairTiles& pairs = scratch.pairs[l];
  const float* before = l == 0 ? a.row(group, first) : a.features(l - 1, group, first);
  pair_across(before, l == 0 ? a.row_stride : inputs, count, inputs, pairs.inputs.data,
              pairs.inputs.stride);
  pair_across(grad.data, grad.stride, count, units, pairs.grads.data, pairs.grads.stride);
  const bool transposed = WeightSums<float>(units, inputs).transposed;
  const TileRows<Pair>& left = transposed ? pairs.inputs : pairs.grads;
  const TileRows<Pair>& right = transposed ? pairs.grads : pairs.inputs;
  const int64_t width = transposed ? std::max<int64_t>(inputs, kRows<kBytes>) : units;
  add_product_t<kBytes>(Rows<Pair>{left.data, left.stride, width}, right.data, right.stride,
                        pairs_of(count), sums.weights[l]);
  if (!want) return;
  const TileRows<Pair>& along = pairs.units;
  pair_along(grad.data, grad.stride, count, units, along.data, along.stride);
  linear<kBytes, false>(Rows<Pair>{along.data, along.stride, pairs_of(units)}, a.layers[l].pairs,
                        group, static_cast<const float*>(nullptr), inputs, count, false,
                        scratch.grads[l].span());
}

template <int kBytes, typename scalar_t>
MG2L_INLINE void backward_tile(const MlpArrays<scalar_t>& a, const MlpGradients<scalar_t>& out,
                               MlpBackwardScratch<scalar_t>& scratch, int64_t group, int64_t first,
                               int64_t count, MlpPart<scalar_t>& sums) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  const MlpSizes& sizes = a.sizes;
  const int64_t outputs = sizes.units.back();
  copy_rows(out.grad + (group * sizes.rows + first) * outputs, outputs, count, outputs,
            scratch.grads.back());
  for (size_t l = sizes.layers(); l-- > 0;) {
    const int64_t units = sizes.units[l], inputs = sizes.inputs_of(l);
    TileRows<scalar_t>& grad = scratch.grads[l + 1];
    if (l < sizes.normalised()) {
      const scalar_t* features = a.features(l, group, first);
      const scalar_t* moments = a.moments_of(l, group, first);
      std::fill_n(scratch.row.data, scratch.row.stride, scalar_t(0));
      if (a.relu) {
        activation_backward<kBytes, true>(features, moments, units, count, grad, scratch.row);
      } else {
        activation_backward<kBytes, false>(features, moments, units, count, grad, scratch.row);
      }
    }
    V zero{};  // x - x is 0, or NaN
    for (int64_t h = 0; h < units; h += kLanes) {
      V sum = load<V>(sums.biases[l] + h);
      for (int64_t t = 0; t < count; ++t) sum += load<V>(grad.data + t * grad.stride + h);
      store(sums.biases[l] + h, sum);
      zero += sum - sum;
    }
    if (l == 0) {
      const bool finite = sum_lanes<scalar_t, kLanes>(zero) == 0;
      scratch.sparse.wanted = false;
      if (finite && WeightSums<scalar_t>(units, inputs).transposed) {
        scratch.sparse.template look_at<kBytes>(a.row(group, first), inputs);
      }
    }
    const bool want = l > 0 || out.x != nullptr;
    if (!a.rounded(l)) {
      products_backward<kBytes>(a, scratch, l, group, first, count, want, sums);
    } else if constexpr (kHasPairs<kBytes, scalar_t>) {
      rounded_backward<kBytes>(a, scratch, l, group, first, count, want, sums);
    }
    if (!want) return;
    if (l == 0) {
      const TileRows<scalar_t>& to = scratch.grads[0];
      scalar_t* grad_x = out.x + (group * sizes.rows + first) * inputs;
      for (int64_t t = 0; t < count; ++t) {
        std::copy_n(to.data + t * to.stride, inputs, grad_x + t * inputs);
      }
    }
  }
}

// Every part sums its rows in order, and the parts are added in order: the same however many
// threads there are.
template <typename scalar_t>
void stacked_mlp_backward_kernel(const MlpArrays<scalar_t>& a, const MlpGradients<scalar_t>& out) {
  const MlpSizes& sizes = a.sizes;
  const int64_t parts = std::max<int64_t>(sizes.rows / kPart, 1);
  const int64_t part_rows = (sizes.rows + parts - 1) / parts;
  const int64_t size = MlpPart<scalar_t>::size(sizes);
  const int64_t work = products_of_row<scalar_t>(sizes) * part_rows * 2;
  const int64_t grain = tiles_per_task(work);
  const std::unique_ptr<scalar_t[]> partial(new scalar_t[sizes.groups * parts * size]);
  torch::stable::parallel_for(0, sizes.groups * parts, grain, [&](int64_t begin, int64_t end) {
    MlpBackwardScratch<scalar_t> scratch(a);
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t part = begin; part < end; ++part) {
        scalar_t* memory = partial.get() + part * size;
        std::fill_n(memory, size, scalar_t(0));
        MlpPart<scalar_t> sums(memory, sizes);
        const int64_t start = part % parts * part_rows;
        const int64_t stop = std::min(start + part_rows, sizes.rows);
        for (int64_t first = start; first < stop; first += kTile) {
          backward_tile<bytes>(a, out, scratch, part / parts, first, std::min(kTile, stop - first),
                               sums);
        }
      }
    });
  });
  const auto sum_parts = [&](int64_t group) {
    scalar_t* total = partial.get() + group * parts * size;
    run_simd([&](auto) MG2L_INLINE_LAMBDA {
      for (int64_t part = 1; part < parts; ++part) {
        const scalar_t* other = total + part * size;
        for (int64_t i = 0; i < size; ++i) total[i] += other[i];
      }
    });
    const MlpPart<scalar_t> sums(total, sizes);
    for (size_t l = 0; l < sizes.layers(); ++l) {
      const int64_t units = sizes.units[l], inputs = sizes.inputs_of(l);
      const WeightSums<scalar_t> shape(units, inputs);
      scalar_t* weight = out.weights[l] + group * units * inputs;
      if (shape.transposed) {
        transpose(sums.weights[l], shape.columns, inputs, units, weight, inputs);
      } else {
        for (int64_t h = 0; h < units; ++h) {
          std::copy_n(sums.weights[l] + h * shape.columns, inputs, weight + h * inputs);
        }
      }
      std::copy_n(sums.biases[l], units, out.biases[l] + group * units);
    }
  };
  torch::stable::parallel_for(0, sizes.groups, tiles_per_task(parts * size),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t group = begin; group < end; ++group) sum_parts(group);
                              });
}

}  // namespace

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> stacked_mlp_backward_cpu(
    const Tensor& grad_, const Tensor& x, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, bool relu, bool plain_last, bool bfloat16, const Tensor& y_,
    const Tensor& kept_, const Tensor& moments_, bool want_x) {
  const MlpSizes sizes = check_stacked_mlp_backward(grad_, x, weights, biases, plain_last, bfloat16,
                                                    y_, kept_, moments_);
  const MlpTensors tensors(x, weights, biases);
  const Tensor grad = as_contiguous(grad_);
  Tensor y = as_contiguous(y_), kept = as_contiguous(kept_), moments = as_contiguous(moments_);
  Tensor grad_x = allocate(x, want_x ? sizes_of(x) : Sizes{0});
  std::vector<Tensor> grad_weights, grad_biases;
  for (const Tensor& weight : weights) grad_weights.push_back(allocate_like(weight));
  for (const Tensor& bias : biases) grad_biases.push_back(allocate_like(bias));
  for_floating(x.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    auto arrays = arrays_of<scalar_t>(sizes, tensors, relu, bfloat16, true, want_x);
    arrays.y = data<scalar_t>(y);
    arrays.kept = data<scalar_t>(kept);
    arrays.moments = data<scalar_t>(moments);
    MlpGradients<scalar_t> out{
        data<scalar_t>(grad), want_x ? data<scalar_t>(grad_x) : nullptr, {}, {}};
    for (Tensor& tensor : grad_weights) out.weights.push_back(data<scalar_t>(tensor));
    for (Tensor& tensor : grad_biases) out.biases.push_back(data<scalar_t>(tensor));
    stacked_mlp_backward_kernel(arrays, out);
  });
  return {grad_x, grad_weights, grad_biases};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("stacked_mlp_backward", TORCH_BOX(&mg2l::stacked_mlp_backward_cpu));
}
