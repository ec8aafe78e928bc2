// CPU kernels of `gelu_mlp` and `gelu_mlp_backward`: a tile of rows goes through all layers before
// the next one.
#include "gelu_mlp.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "gemm.h"

namespace mg2l {
namespace {

constexpr int64_t kTile = 48;  // rows worked on together; whole micro-kernels
static_assert(kTile % 12 == 0);
// Partial sums of gradients, however many threads there are, and rows of each at least.
constexpr int64_t kParts = 32, kPartRows = 8 * kTile;

// A layer as the kernels read it: units, or inputs, along the vectors, padded with zeros.
template <typename scalar_t>
struct GeluLayer {
  int64_t inputs, units, padded, padded_inputs;
  std::vector<scalar_t> weight_t;  // [inputs, padded]
  std::vector<scalar_t> bias;      // [padded]
  std::vector<scalar_t> weight;    // [units, padded inputs], where gradients flow back through it

  GeluLayer(int64_t inputs_, int64_t units_, const scalar_t* weight_, const scalar_t* bias_,
            bool with_weight)
      : inputs(inputs_),
        units(units_),
        padded(padded_width<scalar_t>(units_)),
        padded_inputs(padded_width<scalar_t>(inputs_)),
        weight_t(static_cast<size_t>(inputs * padded)),
        bias(static_cast<size_t>(padded)),
        weight(static_cast<size_t>(with_weight ? units * padded_inputs : 0)) {
    std::copy_n(bias_, units, bias.data());
    for (int64_t h = 0; h < units; ++h) {
      const scalar_t* row = weight_ + h * inputs;
      for (int64_t i = 0; i < inputs; ++i) weight_t[static_cast<size_t>(i * padded + h)] = row[i];
      if (with_weight) std::copy_n(row, inputs, weight.data() + h * padded_inputs);
    }
  }
};

template <typename scalar_t>
struct GeluNetwork {
  const GeluSizes& sizes;
  std::vector<GeluLayer<scalar_t>> layers;

  // `first_weight`: the first layer that gradients flow back through.
  GeluNetwork(const GeluSizes& sizes_, const std::vector<Tensor>& weights,
              const std::vector<Tensor>& biases, size_t first_weight)
      : sizes(sizes_) {
    for (size_t l = 0; l < sizes.layers(); ++l) {
      const Tensor weight = as_contiguous(weights[l]), bias = as_contiguous(biases[l]);
      layers.emplace_back(sizes.inputs_of(l), sizes.units[l], data<scalar_t>(weight),
                          data<scalar_t>(bias), l >= first_weight);
    }
  }
};

// One thread's memory: a tile of rows, and what is known of them at every layer.
template <typename scalar_t>
struct GeluScratch {
  std::vector<scalar_t> inputs;                         // [kTile, in]
  std::vector<std::vector<scalar_t>> products;          // of every layer, [kTile, padded]
  std::vector<std::vector<scalar_t>> features, slopes;  // of hidden layers, the same

  GeluScratch(const GeluNetwork<scalar_t>& network, bool backward)
      : inputs(static_cast<size_t>(kTile * network.sizes.inputs)) {
    for (size_t l = 0; l < network.layers.size(); ++l) {
      const auto size = static_cast<size_t>(kTile * network.layers[l].padded);
      products.emplace_back(size);
      features.emplace_back(l < network.sizes.hidden() ? size : 0);
      slopes.emplace_back(backward && l < network.sizes.hidden() ? size : 0);
    }
  }

  // What a layer multiplies.
  Rows<scalar_t> inputs_of(const GeluNetwork<scalar_t>& network, size_t l) const {
    const int64_t width = network.sizes.inputs_of(l);
    if (l == 0) return {inputs.data(), width, width};
    return {features[l - 1].data(), network.layers[l - 1].padded, width};
  }
};

// to[t, h] = start[h] + rows[t] . matrix[:, h], of whole micro-kernels.
template <int kBytes, typename scalar_t, typename Finish>
MG2L_INLINE void multiply_tile(const Rows<scalar_t>& rows, const scalar_t* matrix, int64_t padded,
                               int64_t count, const scalar_t* start, const Finish& finish) {
  constexpr int kLanes = kBytes / sizeof(scalar_t), kMicro = kRows<kBytes>;
  using V = Vec<scalar_t, kLanes>;
  for (int64_t first = 0; first < count; first += kMicro) {
    for (int64_t h = 0; h < padded; h += kPair * kLanes) {
      V sum[kMicro][kPair];
      const V zero[kPair] = {V{}, V{}};
      if (start != nullptr) {
        const V begin[kPair] = {load<V>(start + h), load<V>(start + h + kLanes)};
        multiply<kBytes>(rows, matrix, padded, first, h, begin, sum);
      } else {
        multiply<kBytes>(rows, matrix, padded, first, h, zero, sum);
      }
      for (int row = 0; row < kMicro; ++row) {
        finish((first + row) * padded + h, sum[row][0]);
        finish((first + row) * padded + h + kLanes, sum[row][1]);
      }
    }
  }
}

template <typename scalar_t>
void copy_tile(const scalar_t* from, int64_t from_stride, int64_t count, int64_t width,
               scalar_t* to, int64_t to_stride) {
  for (int64_t t = 0; t < count; ++t) {
    std::copy_n(from + t * from_stride, width, to + t * to_stride);
  }
}

template <int kBytes, typename scalar_t>
MG2L_INLINE void forward_tile(const GeluNetwork<scalar_t>& network, GeluScratch<scalar_t>& scratch,
                              const scalar_t* x, int64_t first, int64_t count, scalar_t* y,
                              scalar_t* kept) {
  constexpr int kLanes = kBytes / sizeof(scalar_t), kAtOnce = 4;
  using V = Vec<scalar_t, kLanes>;
  const GeluSizes& sizes = network.sizes;
  copy_tile(x + first * sizes.inputs, sizes.inputs, count, sizes.inputs, scratch.inputs.data(),
            sizes.inputs);
  for (size_t l = 0; l < sizes.layers(); ++l) {
    const GeluLayer<scalar_t>& layer = network.layers[l];
    scalar_t* product = scratch.products[l].data();
    multiply_tile<kBytes>(scratch.inputs_of(network, l), layer.weight_t.data(), layer.padded, count,
                          layer.bias.data(), [&](int64_t at, const V& sum) MG2L_INLINE_LAMBDA {
                            store(product + at, sum);
                          });
    if (l == sizes.hidden()) {
      copy_tile(product, layer.padded, count, layer.units, y + first * layer.units, layer.units);
      continue;
    }
    if (kept) {
      copy_tile(product, layer.padded, count, layer.units,
                kept + sizes.kept_before(l) + first * layer.units, layer.units);
    }
    scalar_t* features = scratch.features[l].data();
    for (int64_t i = 0; i < count * layer.padded; i += kAtOnce * kLanes) {  // or a row further
      V h[kAtOnce], g[kAtOnce];
      for (int v = 0; v < kAtOnce; ++v) h[v] = load<V>(product + i + v * kLanes);
      gelu_exact_values<kLanes>(h, g);
      for (int v = 0; v < kAtOnce; ++v) store(features + i + v * kLanes, g[v]);
    }
  }
}

template <typename scalar_t>
void gelu_mlp_kernel(const GeluNetwork<scalar_t>& network, const scalar_t* x, scalar_t* y,
                     scalar_t* kept) {
  const int64_t rows = network.sizes.rows;
  torch::stable::parallel_for(0, (rows + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
    GeluScratch<scalar_t> scratch(network, false);
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * kTile;
        forward_tile<bytes>(network, scratch, x, first, std::min(kTile, rows - first), y, kept);
      }
    });
  });
}

// Where the sums of a part of the rows lie: of every layer [inputs, padded] of the weights and
// [padded] of the biases.
template <typename scalar_t>
struct GeluSums {
  std::vector<scalar_t*> weight_t, bias;

  GeluSums(scalar_t* memory, const GeluNetwork<scalar_t>& network) {
    for (const auto& layer : network.layers) {
      weight_t.push_back(memory);
      memory += layer.inputs * layer.padded;
      bias.push_back(memory);
      memory += layer.padded;
    }
  }

  static int64_t size(const GeluNetwork<scalar_t>& network) {
    int64_t total = 0;
    for (const auto& layer : network.layers) total += (layer.inputs + 1) * layer.padded;
    return total;
  }
};

template <typename scalar_t>
struct GeluGradients {
  const scalar_t *grad, *x, *kept;
  scalar_t* to_x;  // or null
};

template <int kBytes, typename scalar_t>
MG2L_INLINE void backward_tile(const GeluNetwork<scalar_t>& network, GeluScratch<scalar_t>& scratch,
                               const GeluGradients<scalar_t>& a, int64_t first, int64_t count,
                               GeluSums<scalar_t>& sums) {
  constexpr int kLanes = kBytes / sizeof(scalar_t);
  using V = Vec<scalar_t, kLanes>;
  const GeluSizes& sizes = network.sizes;
  copy_tile(a.x + first * sizes.inputs, sizes.inputs, count, sizes.inputs, scratch.inputs.data(),
            sizes.inputs);
  for (size_t l = 0; l < sizes.hidden(); ++l) {
    const GeluLayer<scalar_t>& layer = network.layers[l];
    scalar_t* product = scratch.products[l].data();  // whose padding stays zero, or what it was
    copy_tile(a.kept + sizes.kept_before(l) + first * layer.units, layer.units, count, layer.units,
              product, layer.padded);
    for (int64_t i = 0; i < count * layer.padded; i += kLanes) {
      const Gelu<V> gelu = gelu_exact<kLanes>(load<V>(product + i));
      store(scratch.features[l].data() + i, gelu.value);
      store(scratch.slopes[l].data() + i, gelu.slope);
    }
  }
  const GeluLayer<scalar_t>& last = network.layers.back();
  copy_tile(a.grad + first * last.units, last.units, count, last.units,
            scratch.products.back().data(), last.padded);
  for (size_t l = sizes.layers(); l-- > 0;) {
    const GeluLayer<scalar_t>& layer = network.layers[l];
    const scalar_t* grad = scratch.products[l].data();  // of the layer's product
    for (int64_t h = 0; h < layer.padded; h += kLanes) {
      V sum = load<V>(sums.bias[l] + h);
      for (int64_t t = 0; t < count; ++t) sum += load<V>(grad + t * layer.padded + h);
      store(sums.bias[l] + h, sum);
    }
    add_product_t<kBytes>(scratch.inputs_of(network, l), grad, layer.padded, count,
                          sums.weight_t[l]);
    if (l == 0 && a.to_x == nullptr) return;
    const Rows<scalar_t> rows{grad, layer.padded, layer.units};
    const int64_t padded = layer.padded_inputs;
    if (l > 0) {
      scalar_t* to = scratch.products[l - 1].data();
      const scalar_t* slopes = scratch.slopes[l - 1].data();
      multiply_tile<kBytes, scalar_t>(rows, layer.weight.data(), padded, count, nullptr,
                                      [&](int64_t at, const V& sum) MG2L_INLINE_LAMBDA {
                                        store(to + at, V(sum * load<V>(slopes + at)));
                                      });
      continue;
    }
    std::vector<scalar_t> to(static_cast<size_t>(kTile * padded));
    multiply_tile<kBytes, scalar_t>(rows, layer.weight.data(), padded, count, nullptr,
                                    [&](int64_t at, const V& sum)
                                        MG2L_INLINE_LAMBDA { store(to.data() + at, sum); });
    copy_tile<scalar_t>(to.data(), padded, count, sizes.inputs, a.to_x + first * sizes.inputs,
                        sizes.inputs);
  }
}

// Every part sums its rows in order, and parts are added in order: the same however many threads
// there are. Returns the sums of all rows.
template <typename scalar_t>
std::vector<scalar_t> gelu_mlp_backward_kernel(const GeluNetwork<scalar_t>& network,
                                               const GeluGradients<scalar_t>& a) {
  const int64_t rows = network.sizes.rows, tiles = (rows + kTile - 1) / kTile;
  const int64_t parts = std::clamp<int64_t>(rows / kPartRows, 1, kParts);
  const int64_t size = GeluSums<scalar_t>::size(network);
  std::vector<scalar_t> partial(static_cast<size_t>(parts * size));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    GeluScratch<scalar_t> scratch(network, true);
    run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
      for (int64_t part = begin; part < end; ++part) {
        GeluSums<scalar_t> sums(partial.data() + part * size, network);
        for (int64_t t = part * tiles / parts; t < (part + 1) * tiles / parts; ++t) {
          backward_tile<bytes>(network, scratch, a, t * kTile, std::min(kTile, rows - t * kTile),
                               sums);
        }
      }
    });
  });
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t i = 0; i < size; ++i) {
      partial[static_cast<size_t>(i)] += partial[static_cast<size_t>(part * size + i)];
    }
  }
  return partial;
}

}  // namespace

std::tuple<Tensor, Tensor> gelu_mlp_cpu(const Tensor& x_, const std::vector<Tensor>& weights,
                                        const std::vector<Tensor>& biases, bool keep) {
  const GeluSizes sizes = check_gelu_mlp(x_, weights, biases);
  const Tensor x = as_contiguous(x_);
  Tensor y = allocate(x, {sizes.rows, sizes.units.back()});
  Tensor kept = allocate(x, {keep ? sizes.kept() : 0});
  for_floating(x.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const GeluNetwork<scalar_t> network(sizes, weights, biases, sizes.layers());
    gelu_mlp_kernel(network, data<scalar_t>(x), data<scalar_t>(y),
                    keep ? data<scalar_t>(kept) : nullptr);
  });
  return {y, kept};
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> gelu_mlp_backward_cpu(
    const Tensor& grad_, const Tensor& x_, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, const Tensor& kept_, bool want_x) {
  const GeluSizes sizes = check_gelu_mlp_backward(grad_, x_, weights, biases, kept_);
  const Tensor grad = as_contiguous(grad_), x = as_contiguous(x_), kept = as_contiguous(kept_);
  Tensor to_x = allocate(x, want_x ? sizes_of(x) : Sizes{0});
  std::vector<Tensor> to_weights, to_biases;
  for_floating(x.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const GeluNetwork<scalar_t> network(sizes, weights, biases, want_x ? 0 : 1);
    std::vector<scalar_t> memory = gelu_mlp_backward_kernel<scalar_t>(
        network, {data<scalar_t>(grad), data<scalar_t>(x), data<scalar_t>(kept),
                  want_x ? data<scalar_t>(to_x) : nullptr});
    const GeluSums<scalar_t> sums(memory.data(), network);
    for (size_t l = 0; l < sizes.layers(); ++l) {
      const GeluLayer<scalar_t>& layer = network.layers[l];
      to_weights.push_back(allocate(x, {layer.units, layer.inputs}));
      to_biases.push_back(allocate(x, {layer.units}));
      scalar_t* to = data<scalar_t>(to_weights.back());
      for (int64_t h = 0; h < layer.units; ++h) {
        for (int64_t i = 0; i < layer.inputs; ++i) {
          to[h * layer.inputs + i] = sums.weight_t[l][i * layer.padded + h];
        }
      }
      std::copy_n(sums.bias[l], layer.units, data<scalar_t>(to_biases.back()));
    }
  });
  return {to_x, to_weights, to_biases};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("gelu_mlp", TORCH_BOX(&mg2l::gelu_mlp_cpu));
  m.impl("gelu_mlp_backward", TORCH_BOX(&mg2l::gelu_mlp_backward_cpu));
}
