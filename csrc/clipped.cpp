// CPU kernels of `surrogate` and `value_loss`.
#include "clipped.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "clipped_rows.h"

namespace mg2l {
namespace {

constexpr int64_t kBlock = 4096;       // rows that are summed in scalar_t
constexpr int64_t kMinTaskBlocks = 4;  // below it a thread costs more

// Sums over the rows of each agent, [kSums][A]: a block at a time, which are then added in order,
// so that results do not depend on the number of threads.
template <template <int, typename> class Rows, typename scalar_t>
std::vector<double> sum_rows(const ClippedArrays<scalar_t>& a) {
  const int64_t blocks = (a.rows + kBlock - 1) / kBlock;
  std::vector<double> partial(static_cast<size_t>(a.agents * blocks * kSums));
  torch::stable::parallel_for(
      0, a.agents * blocks, kMinTaskBlocks, [&](int64_t first, int64_t last) {
        run_simd([&](auto bytes) MG2L_INLINE_LAMBDA {
          for (int64_t i = first; i < last; ++i) {
            const int64_t row = i % blocks * kBlock, start = i / blocks * a.rows;
            sum_block<Rows, bytes>(a, start + row, start + std::min(a.rows, row + kBlock),
                                   partial.data() + i * kSums);
          }
        });
      });
  std::vector<double> sums(static_cast<size_t>(kSums * a.agents));
  for (int64_t i = 0; i < a.agents * blocks; ++i) {
    for (int64_t s = 0; s < kSums; ++s) {
      sums[static_cast<size_t>(s * a.agents + i / blocks)] +=
          partial[static_cast<size_t>(i * kSums + s)];
    }
  }
  return sums;
}

template <typename scalar_t>
void write(const std::vector<double>& sums, int64_t which, Tensor& result) {
  const int64_t agents = result.size(0);
  for (int64_t agent = 0; agent < agents; ++agent) {
    data<scalar_t>(result)[agent] =
        static_cast<scalar_t>(sums[static_cast<size_t>(which * agents + agent)]);
  }
}

template <template <int, typename> class Rows, typename scalar_t>
std::vector<double> run(ClippedTensors& tensors, double weight, std::optional<double> clip,
                        std::optional<double> delta) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  const ClippedArrays<scalar_t> arrays{tensors.agents,
                                       tensors.rows,
                                       static_cast<scalar_t>(weight),
                                       static_cast<scalar_t>(clip.value_or(kInfinite)),
                                       static_cast<scalar_t>(delta.value_or(kInfinite)),
                                       data<scalar_t>(std::as_const(tensors.first)),
                                       data<scalar_t>(std::as_const(tensors.second)),
                                       data<scalar_t>(std::as_const(tensors.third)),
                                       data_or_null<scalar_t>(tensors.weights),
                                       data<scalar_t>(tensors.slope)};
  const std::vector<double> sums = sum_rows<Rows>(arrays);
  write<scalar_t>(sums, 0, tensors.loss);
  return sums;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> surrogate_cpu(const Tensor& log_probs,
                                                         const Tensor& before,
                                                         const Tensor& advantages,
                                                         const std::optional<Tensor>& weights,
                                                         double weight, double clip) {
  check_surrogate(log_probs, before, advantages, weights, clip);
  ClippedTensors tensors(log_probs, before, advantages, weights);
  Tensor kl = allocate(tensors.loss, {tensors.agents});
  Tensor fraction = allocate(tensors.loss, {tensors.agents});
  for_floating(log_probs.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto sums = run<SurrogateRows, scalar_t>(tensors, weight, clip, std::nullopt);
    write<scalar_t>(sums, 1, kl);
    write<scalar_t>(sums, 2, fraction);
  });
  return {tensors.loss, kl, fraction, tensors.slope};
}

std::tuple<Tensor, Tensor> value_loss_cpu(const Tensor& prediction, const Tensor& old,
                                          const Tensor& target,
                                          const std::optional<Tensor>& weights, double weight,
                                          std::optional<double> clip, std::optional<double> delta) {
  check_value_loss(prediction, old, target, weights, clip, delta);
  ClippedTensors tensors(prediction, old, target, weights);
  for_floating(prediction.scalar_type(),
               [&](auto zero) { run<ValueRows, decltype(zero)>(tensors, weight, clip, delta); });
  return {tensors.loss, tensors.slope};
}

}  // namespace mg2l

STABLE_TORCH_LIBRARY_IMPL(mg2l, CPU, m) {
  m.impl("surrogate", TORCH_BOX(&mg2l::surrogate_cpu));
  m.impl("value_loss", TORCH_BOX(&mg2l::value_loss_cpu));
}
